r"""Reads rows of CSV, TSV, JSON lines and text files by index, for training and prediction alike.

    id,text\n1,"a\nb"\n\n2,c\n
             |-------|  |---|    starts and ends in bytes, and each row's first line for messages

Rows stay in the file: a process holds three numbers a row, however long the texts are. The file is
parsed once to find where its rows end; what is wrong in a row is found when the row is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from input import InputError, formats, paths, utf8

FORMATS = {"txt": formats.Lines, "csv": formats.Table, "tsv": formats.Table, "jsonl": formats.Json}
SUFFIXES = {".txt": "txt", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl",
            ".ndjson": "jsonl", ".json": "jsonl"}  # fmt: skip
COMPRESSED = (".gz", ".bz2", ".xz")
# Formats that are not read, but that are meant as tables: the content is refused with a reason.
OTHERS = (".xlsx", ".xls", ".ods", ".parquet", ".feather", ".arrow", ".zip", ".zst", ".pkl")


def form_of(path: Path) -> str | None:
    """Returns the format of a file by its name, a key of FORMATS; None: the name does not say."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def is_file_name(text: str) -> bool:
    """Returns whether a name is that of a file of rows, readable or not."""
    path = Path(text)
    return form_of(path) is not None or path.suffix.lower() in OTHERS


class Rows:
    """The rows of a file, and the values of some of their fields.

    Args:
        path: of the file.
        form: a key of FORMATS.
        fields: columns or keys that are read; of a txt, one name for the line.

    Attributes:
        lines: the first line of each row, counted from 1.

    Raises:
        InputError: the file cannot be read or split into rows, or lacks a column or has it twice.
    """

    def __init__(self, path: Path, form: str, fields: Sequence[str]) -> None:
        self.path, self.form, self.fields = path, form, tuple(fields)
        self.starts, self.ends, self.lines = array("q"), array("q"), array("q")
        try:
            self.file = utf8.open_utf8(path)
            self._state = paths.state(self.file.fileno())
            self._format = FORMATS[form](path, self.file, form, fields)
            for start, end, line in self._format.spans():
                self.starts.append(start)
                self.ends.append(end)
                self.lines.append(line)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}.") from None
        if not self.starts:
            raise InputError(f"{path} has no rows.")

    def __len__(self) -> int:
        return len(self.starts)

    def values(self, i: int) -> list[Any]:
        """Reads row i: a string for each field; of a jsonl any value, None for a missing field.

        A byte that is not UTF-8 becomes a surrogate (surrogateescape).

        Raises:
            ValueError: says what is wrong with the row, without a full stop.
            InputError: the file changed since it was opened.
        """
        content = self._content(i)
        if paths.state(self.file.fileno()) != self._state:
            raise InputError(f"{self.path} changed while it was read: start again.")
        return self._format.values(content)

    def columns(self) -> list[str]:
        """Returns the names of all columns, of a jsonl the keys of the first object."""
        return self._format.columns_of(self._content(0))

    def _content(self, i: int) -> bytes:
        return os.pread(self.file.fileno(), self.ends[i] - self.starts[i], self.starts[i])

    def digest(self, kind: Any) -> str:
        """Returns a digest of the content and of `kind`, a JSON value that says what is read."""
        digest = hashlib.sha256(json.dumps(kind).encode())
        self.file.seek(0)
        while block := self.file.read(formats.BLOCK):
            digest.update(block)
        return digest.hexdigest()
