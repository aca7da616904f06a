"""Compares training steps with the same steps in PyTorch, on this machine."""
