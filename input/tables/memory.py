"""Reads small tables as columns: CSV, TSV and JSON files, and what scikit-learn ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input import InputError, rows
from input.rows import Rows
from input.source import Ids
from input.tables import columns
from input.tables.columns import Columns


class Delimited(Columns):
    """Columns of a CSV, TSV or JSON file, whose rows stay in the file (`rows.py`).

    Args:
        path: of the file.
        wanted: columns that are read.
        reads_all: whether columns that are not named are read too.

    Raises:
        InputError: the file cannot be read, or has no such column (names the nearest).
    """

    def __init__(self, path: Path, wanted: Sequence[str], reads_all: bool) -> None:
        form = rows.form_of(path) or "csv"
        self.path, self.classes = str(path), {}
        self.rows = Rows(path, "csv" if form == "txt" else form, wanted)
        every = self.rows.columns()
        columns.require(self.path, every, wanted)
        if reads_all:
            self.rows = Rows(path, self.rows.form, every)
        self.names = self.rows.fields
        self.state = self.rows.digest(self.names)

    def __len__(self) -> int:
        return len(self.rows)

    def values(self, ids: Ids, name: str) -> Sequence[Any]:
        """See the base class: strings, of JSON any value."""
        place, found = self.names.index(name), []
        for row in map(int, ids):
            try:
                value = self.rows.values(row)[place]
            except ValueError as error:
                raise InputError(f"{self.name(row)}: {error}.") from None
            if value is None or value == "":
                raise InputError(columns.empty(self.name(row), name))
            found.append(value)
        return found

    def name(self, row: int) -> str:
        """See the base class."""
        return f"{self.path}, line {self.rows.lines[row]}"


class Arrays(Columns):
    """Columns in memory.

    Args:
        path: for messages.
        arrays: by name, all of one length.
    """

    def __init__(self, path: str, arrays: Mapping[str, np.ndarray]) -> None:
        self.path, self.arrays, self.classes = path, dict(arrays), {}
        self.names = tuple(arrays)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def values(self, ids: Ids, name: str) -> Sequence[Any]:
        """See the base class."""
        found: np.ndarray = self.arrays[name][np.asarray(ids, np.int64)]
        return found  # type: ignore[return-value]


def diabetes() -> Arrays:
    """Returns scikit-learn's diabetes set: 442 patients, 10 measurements, the disease a year on.

    Efron et al., Least Angle Regression (2004). Inputs have mean 0 and squares that add up to 1.
    """
    from sklearn.datasets import load_diabetes

    found = load_diabetes()
    arrays = {name: found.data[:, k] for k, name in enumerate(found.feature_names)}
    return Arrays("diabetes", arrays | {"progression": found.target})
