"""Defines a table that is read by index and by column, whatever its format."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from input import InputError
from input.source import Ids

CHUNK = 4096  # rows read at once


class Columns(ABC):
    """Rows that are read by index, some of their columns at a time.

    Attributes:
        path: for messages.
        names: of all columns.
        classes: by column, the names of the classes that its whole numbers mean, where the
            format knows them.
        state: changes when the content does; "": not known.
    """

    path: str
    names: tuple[str, ...]
    classes: dict[str, tuple[str, ...]]
    state: str = ""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def values(self, ids: Ids, name: str) -> Sequence[Any]:
        """Returns a column's values in some rows: numbers, arrays, strings or bytes.

        Raises:
            InputError: names the row that cannot be read.
        """

    def distinct(self, name: str) -> set[Any]:
        """Returns the values of a column."""
        starts = range(0, len(self), CHUNK)
        chunks = (np.arange(at, min(at + CHUNK, len(self))) for at in starts)
        return {plain(value) for ids in chunks for value in self.values(ids, name)}

    def name(self, row: int) -> str:
        """Returns where a row is, for messages."""
        return f"row {row} of {self.path}"


def plain(value: Any) -> Any:
    """Returns a label that compares and prints as itself: no NumPy number, no bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if isinstance(value, np.generic) else value


def empty(row: str, name: str) -> str:
    """Returns the message about a value that is missing."""
    return f"{row}: column {name!r} is empty or NaN: fill it in, or leave the row out."


def require(path: str, names: Sequence[str], wanted: Iterable[str]) -> None:
    """Checks that there are such columns.

    Raises:
        InputError: names the nearest to one that is not there.
    """
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"{path} has no column {name!r}, only {', '.join(names) or 'none'}{hint or '.'}"
            )
