"""Measures, compares, diagnoses and disturbs training, which works without this folder."""
