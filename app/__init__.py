"""An experiment (what is computed) under a layout (where it is computed), to weights."""
