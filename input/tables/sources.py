"""Makes examples of the columns of a table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from input import InputError, labels
from input.nests import Spec
from input.source import CLASS, ENCODED, Encoded, Ids, Source
from input.tables import columns
from input.tables.columns import plain
from input.tables.opening import Part, parts


class Numbers(Source):
    """Rows whose inputs are columns of numbers, and perhaps columns that stay text or bytes.

    Args:
        part: the rows.
        inputs: columns; the numbers of several are one float32 vector, in this order.
        raw: columns of text or bytes; with these the inputs are a dictionary.
        targets: columns.
        predicts: what the targets are; see `input.tables.Table`.
        classes: names, as `classes_of` gives them.
    """

    def __init__(
        self, part: Part, inputs: Sequence[str], raw: Sequence[str], targets: Sequence[str],
        predicts: str, classes: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.part, self.inputs, self.raw = part, inputs, raw
        self.targets, self.predicts, self.classes = targets, predicts, classes

    def __len__(self) -> int:
        return len(self.part.rows)

    def fetch(self, ids: Ids) -> tuple[Sequence[Any], Sequence[Any]]:
        """Reads rows."""
        rows = self.part.rows[np.asarray(ids, np.int64)]
        found: dict[str, Any] = {name: self.part.columns.values(rows, name) for name in self.raw}
        if self.inputs:
            found["numbers"] = numbers(self.part, rows, self.inputs)
        inputs: Sequence[Any] = found.get("numbers", [])
        if self.raw:
            inputs = [{key: found[key][k] for key in found} for k in range(len(rows))]
        if self.predicts == "class":
            return inputs, class_numbers(self.part, rows, self.targets[0], self.classes)
        return inputs, numbers(self.part, rows, self.targets)

    def name(self, example: int) -> str:
        """Returns where the row is, for messages."""
        return self.part.columns.name(int(self.part.rows[example]))


class Examples(Encoded):
    """Rows with a column of encoded images or texts, and a column of classes or numbers.

    Attributes:
        digest: of what the examples depend on.
    """

    def __init__(self, part: Part, field: str, label: str, classes: tuple[str, ...]) -> None:
        self.part, self.field, self.label, self.classes = part, field, label, classes
        self.specs = ENCODED, CLASS if classes else Spec((1,), "float32")
        table = part.columns
        about = [table.path, table.state, field, part.rows.tolist()]
        self.digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.part.rows)

    def fetch(self, ids: Ids) -> tuple[list[bytes], Sequence[Any]]:
        """Reads rows."""
        rows = self.part.rows[np.asarray(ids, np.int64)]
        found = self.part.columns.values(rows, self.field)
        raws = [x.encode() if isinstance(x, str) else x for x in found]
        for raw, row in zip(raws, rows, strict=True):
            if not isinstance(raw, bytes):
                where = self.part.columns.name(int(row))
                raise InputError(f"{where}: column {self.field!r} is no text or image.")
        if not self.classes:
            return raws, numbers(self.part, rows, [self.label])
        return raws, class_numbers(self.part, rows, self.label, self.classes)

    def name(self, example: int) -> str:
        """Returns where the row is, for messages."""
        return self.part.columns.name(int(self.part.rows[example]))


def open_splits(
    dataset: str, evaluation: str | None, data_dir: str, fields: tuple[str, str],
    classes: tuple[str, ...], prepares: bool, are_numbers: bool = False,
) -> tuple[Examples, Examples, str]:  # fmt: skip
    """Returns training split, evaluation split and the latter's name; see `opening.parts`.

    Args:
        dataset: a name, path, pattern or URL.
        evaluation: likewise, or None.
        data_dir: below which copies and indices are.
        fields: columns of the image or text, and of the label.
        classes: names; empty: the column's.
        prepares: whether to write copies and indices that are not there.
        are_numbers: whether the labels are numbers to predict, not classes.
    """
    *both, split = parts(dataset, evaluation, data_dir, fields, prepares=prepares)
    classes = () if are_numbers else classes_of(both[0], fields[1], classes)
    train, held_out = (Examples(part, *fields, classes) for part in both)
    return train, held_out, split


def classes_of(part: Part, name: str, given: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the classes of a column: given, or as the format knows them, or its values, sorted.

    Raises:
        InputError: there are fewer than two.
    """
    classes = given or part.columns.classes.get(name)
    if not classes:
        found = part.columns.distinct(name) - {None}
        is_whole = all(isinstance(x, int) and not isinstance(x, bool) for x in found)
        classes = tuple(map(str, sorted(found) if is_whole else sorted(map(str, found))))
    labels.require_classes(classes, part.columns.path)
    return classes


def class_numbers(part: Part, rows: np.ndarray, name: str, classes: tuple[str, ...]) -> list[int]:
    """Returns the class of each row.

    Raises:
        InputError: names the row whose label is none of the classes.
    """
    known = part.columns.classes.get(name)
    number = {label: k for k, label in enumerate(classes)}
    found = []
    for row, value in zip(rows, map(plain, part.columns.values(rows, name)), strict=True):
        if known and isinstance(value, int):
            label = known[value] if 0 <= value < len(known) else str(value)
        else:
            label = str(value).strip()
        if label not in number:
            raise InputError(
                f"{part.columns.name(int(row))}: label {label!r} is none of the classes "
                f"{', '.join(classes)}: correct it, or set data.classes."
            )
        found.append(number[label])
    return found


def numbers(part: Part, rows: np.ndarray, names: Sequence[str]) -> Sequence[np.ndarray]:
    """Returns the numbers of columns: of one as they are, of several joined to a vector a row.

    Raises:
        InputError: names the row that has none.
    """
    parts = [
        [_number(part, value, name, row) for value, row in zip(values, rows, strict=True)]
        for name in names
        for values in [part.columns.values(rows, name)]
    ]
    if len(parts) == 1:
        return parts[0]
    return [np.concatenate([x.ravel() for x in row]) for row in zip(*parts, strict=True)]


def _number(part: Part, value: Any, name: str, row: int) -> np.ndarray:
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise InputError(
            f"{part.columns.name(int(row))}: column {name!r} is {value!r}, no number: "
            "correct it, or name the column in `raw` to leave it as it is."
        ) from None
    if np.isnan(array).any():
        raise InputError(columns.empty(part.columns.name(int(row)), name))
    return array if array.ndim else array[np.newaxis]
