"""The same training steps in PyTorch, beside ours: what else users could pick on this machine."""
