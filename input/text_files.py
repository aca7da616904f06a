"""Labelled texts in a file of the user's: TSV or CSV with column names, or JSON lines."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from input import InputError, paths
from input.order import split_of
from input.text import Text


def open_splits(config: Text) -> tuple[TextFile, TextFile, str]:
    """Returns the training split, the evaluation split and the latter's name.

    Raises:
        InputError: names the file and line that cannot be used.
    """
    path = paths.of_user(config.dataset)
    rows = list(read(path, config))
    classes = config.classes or tuple(sorted({label for _, _, label in rows}))
    if len(classes) < 2:
        raise InputError(
            f"{path} has {len(rows)} texts of {len(classes)} classes: it needs 2 or more."
        )
    if config.evaluation_file:
        held = paths.of_user(config.evaluation_file)
        return (
            TextFile(path, rows, classes),
            TextFile(held, list(read(held, config)), classes),
            "test",
        )
    split = [split_of(text) for _, text, _ in rows]
    train, test = (
        [row for row, name in zip(rows, split, strict=True) if (name == "test") == is_test]
        for is_test in (False, True)
    )
    if not test:
        raise InputError(
            f"{path} has too few texts ({len(rows)}) to hold a tenth out: give "
            "data.evaluation_file."
        )
    return TextFile(path, train, classes), TextFile(path, test, classes), "test"


class TextFile:
    """One split: (line, text, label) in the file's order."""

    def __init__(
        self, path: Path, rows: list[tuple[int, str, str]], classes: tuple[str, ...]
    ) -> None:
        self.path, self.rows, self.classes = path, rows, classes
        if not rows:
            raise InputError(f"{path} has no texts.")
        number = {label: i for i, label in enumerate(classes)}
        for line, _, label in rows:
            if label not in number:
                raise InputError(
                    f"{path}, line {line}: label {label!r} is none of the classes "
                    f"{', '.join(classes)}: mend it, or set data.classes."
                )
        self.labels = [number[label] for _, _, label in rows]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def digest(self) -> str:
        """Of the texts, in order."""
        digest = hashlib.sha256()
        for _, text, _ in self.rows:
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
        return digest.hexdigest()

    def fetch(self, ids: Iterable[int]) -> tuple[list[bytes], list[int]]:
        """Texts in UTF-8, and labels."""
        ids = [int(i) for i in ids]
        return [self.rows[i][1].encode() for i in ids], [self.labels[i] for i in ids]

    def name(self, example: int) -> str:
        """File and line."""
        return f"{self.path}, line {self.rows[example][0]}"


def read(path: Path, config: Text) -> Iterator[tuple[int, str, str]]:
    """(line, text, label) of each row.

    Raises:
        InputError: a file that cannot be read, a row without text or label.
    """
    lines = _lines(path)
    rows = _json_lines(lines, path) if path.suffix == ".jsonl" else _columns(lines, path)
    for line, row in rows:
        values = [row.get(field) for field in (config.text_field, config.label_field)]
        for field, value in zip(("text_field", "label_field"), values, strict=True):
            if value is None or not str(value).strip():
                raise InputError(
                    f"{path}, line {line}: {getattr(config, field)!r} is empty or missing (the "
                    f"row has {', '.join(map(str, row)) or 'nothing'}): mend it or set "
                    f"data.{field}."
                )
        yield line, str(values[0]).strip(), str(values[1]).strip()


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{path}, line {number} is not UTF-8 ({error.reason} at its byte "
                        f"{error.start + 1})."
                    ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None


def _columns(lines: Iterable[str], path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    # A quotation mark in a .tsv is a character as any other; a .csv quotes its commas with it.
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    csv.field_size_limit(2**31 - 1)  # of one text
    reader = csv.DictReader(lines, strict=True, **(dialect if path.suffix == ".tsv" else {}))
    try:
        for row in reader:
            if None in row:
                raise InputError(
                    f"{path}, line {reader.line_num} has {len(row) - 1 + len(row[None])} columns, "
                    f"not {len(row) - 1}: quote texts with commas in a .csv, and take tabs out of "
                    "texts in a .tsv."
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}.") from None


def _json_lines(lines: Iterable[str], path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()  # half a character is none
        except ValueError as error:
            raise InputError(f"{path}, line {number} is not JSON in UTF-8: {error}.") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} is not a JSON object.")
        yield number, row
