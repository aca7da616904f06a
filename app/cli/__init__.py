"""What a command line says, before TensorFlow is imported: flags, settings, checks, folders."""
