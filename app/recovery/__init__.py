"""What keeps a run alive: who watches it, how it stops, how it goes on. Needs no TensorFlow."""
