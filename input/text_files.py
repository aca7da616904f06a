"""Labelled texts in a file of the user's: TSV or CSV with column names, or JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from input import InputError
from input.datasets import movie_sentences
from input.text import Text

SUFFIXES = (".tsv", ".csv", ".jsonl")


def open_splits(config: Text) -> tuple[TextFile, TextFile, str]:
    """Returns the training split, the evaluation split and the latter's name.

    Raises:
        InputError: names the file and line that cannot be used.
    """
    path = Path(config.dataset).expanduser()
    rows = list(read(path, config))
    classes = config.classes or tuple(sorted({label for _, _, label in rows}))
    if config.evaluation_file:
        held = Path(config.evaluation_file).expanduser()
        return (
            TextFile(path, rows, classes),
            TextFile(held, list(read(held, config)), classes),
            "test",
        )
    test = [row for row in rows if movie_sentences.split_of(row[1]) == "test"]
    train = [row for row in rows if movie_sentences.split_of(row[1]) != "test"]
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
        self.path, self.rows, self.num_classes = path, rows, len(classes)
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
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = _json_lines(file) if path.suffix == ".jsonl" else _columns(file, path)
            for line, row in rows:
                values = [row.get(field) for field in (config.text_field, config.label_field)]
                for field, value in zip(("text_field", "label_field"), values, strict=True):
                    if value is None or not str(value).strip():
                        wanted = getattr(config, field)
                        raise InputError(
                            f"{path}, line {line}: {wanted!r} is empty or missing (the row has "
                            f"{', '.join(map(str, row)) or 'nothing'}): mend it or set "
                            f"data.{field}."
                        )
                yield line, str(values[0]).strip(), str(values[1]).strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}, byte {error.start}).") from None
    except (OSError, csv.Error, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}.") from None


def _columns(file: Iterable[str], path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    # A quotation mark in a .tsv is a character as any other; a .csv quotes its commas with it.
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    reader = csv.DictReader(file, strict=True, **(dialect if path.suffix == ".tsv" else {}))
    for row in reader:
        yield reader.line_num, row


def _json_lines(file: Iterable[str]) -> Iterator[tuple[int, dict[str, object]]]:
    for line, text in enumerate(file, 1):
        row = json.loads(text)
        if not isinstance(row, dict):
            raise ValueError(f"line {line} is not a JSON object")
        yield line, row
