"""Mechanisms of parallel computation: topology, collectives, exact sums, pipelines, clusters."""
