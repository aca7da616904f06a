"""How fast predictions are, by layout and batch."""
