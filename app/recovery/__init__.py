"""Keeps a run alive inside its ranks: heartbeats, stop signals, manifests, locks. No TensorFlow."""
