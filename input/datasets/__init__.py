"""TFDS builders for data sets that install as packages."""
