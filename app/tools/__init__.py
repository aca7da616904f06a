"""What measures, compares, diagnoses and disturbs. Training works without this folder."""
