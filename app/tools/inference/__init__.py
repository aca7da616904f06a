"""Measures how fast predictions are, by layout and batch size."""
