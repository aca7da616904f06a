"""Examines a machine for `doctor`, a file a subject. Only what a rank runs needs TensorFlow."""
