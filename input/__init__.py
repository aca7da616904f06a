"""Input: which examples make a step, and how they get from files to tensors.

    order.py, indexed.py   the loop over a data set: which examples, read, decoded and batched
    images/, text/         the two kinds of data, each configured in its __init__.py
    datasets/              sets of TensorFlow Datasets, and builders of more
    rows.py, items.py      rows of CSV, TSV, JSON lines and text files; what is to be predicted

Nothing in this package knows of ranks or Horovod, or imports `app` or `models`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class InputError(Exception):
    """Data that is missing or damaged: says what, where, and how to fix it."""


class Source(Protocol):
    """One split of a data set, read by index: encoded images, or texts in UTF-8.

    Attributes:
        classes: names of the labels.
    """

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def fetch(self, ids: Iterable[int]) -> tuple[list[bytes], list[int]]:
        """Reads examples and their labels."""
        ...

    def name(self, example: int) -> str:
        """Returns where an example is, for messages."""
        ...
