"""Labelled texts in a file of the user's: a table with column names, or JSON.

Rows stay in the file (`rows.py`); a process holds a few numbers of each.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from input import InputError, paths, plain
from input.order import split_of
from input.rows import Rows
from input.text import Text


def open_splits(config: Text) -> tuple[TextFile, TextFile, str]:
    """Returns the training split, the evaluation split and the latter's name.

    Raises:
        InputError: names the file and line that cannot be used.
    """
    path = paths.of_user(config.dataset)
    every = _Labelled(path, config, config.classes)
    classes = config.classes or tuple(sorted(every.numbers))
    if len(classes) < 2:
        raise InputError(
            f"{path} has {len(every.rows)} texts of {len(classes)} classes: it needs 2 or more."
        )
    if config.evaluation_file:
        held = _Labelled(paths.of_user(config.evaluation_file), config, classes)
        return every.split(range(len(every.rows)), classes), held.split(
            range(len(held.rows)), classes
        ), "test"  # fmt: skip
    train = [i for i, is_test in enumerate(every.are_tests) if not is_test]
    test = [i for i, is_test in enumerate(every.are_tests) if is_test]
    if not test or not train:
        raise InputError(
            f"{path} has too few texts ({len(every.rows)}) to hold a tenth out: give "
            "data.evaluation_file."
        )
    return every.split(train, classes), every.split(test, classes), "test"


class _Labelled:
    """All rows of a file, looked at once.

    Args:
        path: of the file.
        config: names its columns.
        classes: labels that may be; none: all that are found.

    Attributes:
        numbers: a number of each label, in the order in which they are met.
        are_tests: of each row, whether it is held out where nothing else is.
        digests: of the texts in order, by whether those that are held out are left out.
    """

    def __init__(self, path: Path, config: Text, classes: Sequence[str]) -> None:
        form = plain.form_of(path) or "csv"
        fields = (config.text_field, config.label_field)
        # Labelled texts in a .txt are a table; a .txt without a header is none.
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

    def split(self, places: Sequence[int], classes: Sequence[str]) -> TextFile:
        """Some of the rows, their labels numbered as the classes are."""
        digest = self.digests[len(places) < len(self.rows)].hexdigest()
        number = {label: i for i, label in enumerate(classes)}
        of_ours = [number[label] for label in self.numbers]
        labels = array("l", [of_ours[self.labels[i]] for i in places])
        return TextFile(self.rows, array("q", places), labels, tuple(classes), digest)


class TextFile:
    """One split: rows of a file, in its order.

    Attributes:
        digest: of the texts that train, in order.
    """

    def __init__(
        self, rows: Rows, places: Sequence[int], labels: Sequence[int], classes: tuple[str, ...],
        digest: str,
    ) -> None:  # fmt: skip
        self.rows, self.places, self.labels, self.classes = rows, places, labels, classes
        self.digest = digest

    def __len__(self) -> int:
        return len(self.places)

    def fetch(self, ids: Iterable[int]) -> tuple[list[bytes], list[int]]:
        """Texts in UTF-8, and labels."""
        ids = [int(i) for i in ids]
        texts = [labelled(self.rows, self.places[i])[0].encode() for i in ids]
        return texts, [self.labels[i] for i in ids]

    def name(self, example: int) -> str:
        """File and line."""
        return f"{self.rows.path}, line {self.rows.lines[self.places[example]]}"


def labelled(rows: Rows, i: int) -> tuple[str, str]:
    """Text and label of a row, without white space around them.

    Raises:
        InputError: what is wrong with the row.
    """
    try:
        values = rows.values(i)
        for field, value, check in zip(rows.fields, values, (_text, _label), strict=True):
            if value is None or not str(value).strip():
                raise ValueError(f"{field!r} is empty or missing: fill it in, or remove the row")
            check(field, value)
    except ValueError as error:
        raise InputError(f"{rows.path}, line {rows.lines[i]}: {error}.") from None
    return str(values[0]).strip(), str(values[1]).strip()


def _text(field: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{field!r} is {value!r}, which is no text: put quotation marks around it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ord(value[error.start])
        what = f"byte {half - 0xDC00:#x}" if 0xDC80 <= half <= 0xDCFF else "half a character"
        raise ValueError(f"{field!r} is not UTF-8 ({what}): save the file as UTF-8") from None


def _label(field: str, value: Any) -> None:
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    if not isinstance(value, str) and not is_number:
        raise ValueError(f"{field!r} is {value!r}: a label must be a string or a number")
    _text(field, str(value))
