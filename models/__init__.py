"""Models: each is a frozen dataclass that lists its blocks. To add one, add a file.

Models know nothing of ranks, devices or Horovod, and import neither `app` nor `input`.
"""


class ModelError(Exception):
    """A model that breaks the protocol of blocks: names the block and says how to fix it."""
