"""What `doctor` looks at, a file a subject. Needs no TensorFlow but for what a rank runs."""
