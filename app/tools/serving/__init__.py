"""How fast a server answers, by clients."""
