"""Reads labelled texts from a user's file: a table with column names, or JSON.

Rows stay in the file (`rows.py`); a process holds a few numbers of each.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from input import InputError, paths, rows
from input.order import split_of
from input.rows import Rows
from input.source import Encoded, Ids


def open_splits(
    dataset: str, evaluation_file: str | None, fields: tuple[str, str], classes: Sequence[str]
) -> tuple[TextFile, TextFile, str]:
    """Returns training split, evaluation split and the latter's name.

    Args:
        dataset: path of the file.
        evaluation_file: path of the evaluation split; None: a tenth of `dataset` is held out.
        fields: names of the text's and the label's column.
        classes: labels in the order of their numbers; empty: the file's, sorted.

    Raises:
        InputError: names the file and line that cannot be used.
    """
    path = paths.expand_user(dataset)
    every = _Labelled(path, fields, classes)
    classes = classes or tuple(sorted(every.numbers))
    if len(classes) < 2:
        raise InputError(
            f"{path} has {len(every.rows)} texts of {len(classes)} classes: it needs 2 or more."
        )
    if evaluation_file:
        held_out = _Labelled(paths.expand_user(evaluation_file), fields, classes)
        return every.split(classes), held_out.split(classes), "test"
    train = [i for i, is_test in enumerate(every.are_tests) if not is_test]
    test = [i for i, is_test in enumerate(every.are_tests) if is_test]
    if not test or not train:
        raise InputError(
            f"{path} has too few texts ({len(every.rows)}) to hold a tenth out: give "
            "data.evaluation_file."
        )
    return every.split(classes, train), every.split(classes, test), "test"


class _Labelled:
    """All rows of a file, each read once.

    Args:
        path: of the file.
        fields: names of the text's and the label's column.
        classes: labels that are allowed; empty: any.

    Attributes:
        numbers: a number of each label, in the order in which they are met.
        are_tests: of each row, whether it belongs to the tenth that can be held out.
        digests: of the texts in order, by whether that tenth is left out.
    """

    def __init__(self, path: Path, fields: tuple[str, str], classes: Sequence[str]) -> None:
        form = rows.form_of(path) or "csv"
        # Labelled texts in a .txt are a table: a .txt of lines has no labels.
        self.rows = Rows(path, "csv" if form == "txt" else form, fields)
        self.numbers: dict[str, int] = {}
        self.labels, self.are_tests = array("l"), array("b")
        self.digests = {False: hashlib.sha256(), True: hashlib.sha256()}
        for i in range(len(self.rows)):
            text, label = labelled(self.rows, i)
            if classes and label not in classes:
                raise InputError(
                    f"{path}, line {self.rows.lines[i]}: label {label!r} is none of the classes "
                    f"{', '.join(classes)}: correct it, or set data.classes."
                )
            self.labels.append(self.numbers.setdefault(label, len(self.numbers)))
            is_test, encoded = split_of(text) == "test", text.encode()
            self.are_tests.append(is_test)
            for is_without, digest in self.digests.items():
                if not (is_without and is_test):
                    digest.update(len(encoded).to_bytes(8, "big") + encoded)

    def split(self, classes: Sequence[str], places: Sequence[int] | None = None) -> TextFile:
        """Returns some of the rows, or all, their labels numbered as the classes are."""
        places = range(len(self.rows)) if places is None else places
        digest = self.digests[len(places) < len(self.rows)].hexdigest()
        number = {label: i for i, label in enumerate(classes)}
        renumbered = [number[label] for label in self.numbers]
        labels = array("l", [renumbered[self.labels[i]] for i in places])
        return TextFile(self.rows, array("q", places), labels, tuple(classes), digest)


class TextFile(Encoded):
    """A split: rows of a file, in its order.

    Attributes:
        digest: of the training texts, in order.
    """

    def __init__(
        self, rows: Rows, places: Sequence[int], labels: Sequence[int], classes: tuple[str, ...],
        digest: str,
    ) -> None:  # fmt: skip
        self.rows, self.places, self.labels, self.classes = rows, places, labels, classes
        self.digest = digest

    def __len__(self) -> int:
        return len(self.places)

    def fetch(self, ids: Ids) -> tuple[list[bytes], list[int]]:
        """Reads texts in UTF-8, and labels."""
        ids = [int(i) for i in ids]
        texts = [labelled(self.rows, self.places[i])[0].encode() for i in ids]
        return texts, [self.labels[i] for i in ids]

    def name(self, example: int) -> str:
        """Returns file and line."""
        return f"{self.rows.path}, line {self.rows.lines[self.places[example]]}"


def labelled(rows: Rows, i: int) -> tuple[str, str]:
    """Returns text and label of a row, without white space around them.

    Raises:
        InputError: says what is wrong with the row.
    """
    try:
        values = rows.values(i)
        for field, value, check in zip(
            rows.fields, values, (_check_text, _check_label), strict=True
        ):
            if value is None or not str(value).strip():
                raise ValueError(f"{field!r} is empty or missing: fill it in, or remove the row")
            check(field, value)
    except ValueError as error:
        raise InputError(f"{rows.path}, line {rows.lines[i]}: {error}.") from None
    return str(values[0]).strip(), str(values[1]).strip()


def _check_text(field: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{field!r} is {value!r}, which is no text: put quotation marks around it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ord(value[error.start])
        what = f"byte {half - 0xDC00:#x}" if 0xDC80 <= half <= 0xDCFF else "half a character"
        raise ValueError(f"{field!r} is not UTF-8 ({what}): save the file as UTF-8") from None


def _check_label(field: str, value: Any) -> None:
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    if not isinstance(value, str) and not is_number:
        raise ValueError(f"{field!r} is {value!r}: a label must be a string or a number")
    _check_text(field, str(value))
