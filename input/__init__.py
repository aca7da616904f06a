"""Input: which examples make a step, and how they get from files to tensors.

Nothing here knows of ranks or Horovod, nor imports `app` or `models`.
"""


class InputError(Exception):
    """A data set that is missing or damaged: what, where, and the way out."""
