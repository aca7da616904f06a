"""Starts the ranks of a job, watches them, and starts them again."""
