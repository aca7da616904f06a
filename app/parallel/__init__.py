"""Who computes what, and how the parts of a step are added up."""
