"""Reports on a run, to people and to scripts."""
