"""Measures how fast a server answers, by number of clients."""
