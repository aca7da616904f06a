"""Models: each a frozen dataclass that lists its blocks. To add one, add a file here.

Nothing here knows of ranks, devices or Horovod, nor imports `app` or `input`.
"""


class ModelError(Exception):
    """A list of blocks that breaks the protocol: which block, and the way out."""
