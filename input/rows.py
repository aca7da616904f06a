r"""The rows of a file as items: where each is, and one at a time from the file.

    id,text\n1,"a\nb"\n\n2,c\n
             |-------|  |---|    starts and ends in bytes, and the line of each end for people

A process holds three numbers a row, however long the texts are. A .csv is parsed to find where its
rows end; what is wrong in a row is found when it is fetched.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from input import InputError, paths

BLOCK = 2**20  # bytes read at once for the digest
MARK = b"\xef\xbb\xbf"  # of byte order, at the start of a file in UTF-8


class Rows:
    """Texts, or paths of images from where the file is (`Items`).

    Raises:
        InputError: a file that cannot be read, or not be cut into rows; no such column; when a
            row is fetched, a file that changed.
    """

    def __init__(self, path: Path, kind: str, field: str, are_paths: bool) -> None:
        self.path, self.kind, self.field, self.are_paths = path, kind, field, are_paths
        self.starts, self.ends, self.lines = array("q"), array("q"), array("q")
        self.columns: list[str] = []
        try:
            self.file = _opened(path)
            self._state = self._look()
            self._first = len(MARK) if self.file.read(len(MARK)) == MARK else 0
            for start, end, line in self._whole() if kind in ("csv", "tsv") else self._single():
                self.starts.append(start)
                self.ends.append(end)
                self.lines.append(line)
            if not self.starts:
                raise InputError(f"{path} has no rows.")
            self.digest = self._digest()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}.") from None

    def __len__(self) -> int:
        return len(self.starts)

    def fetch(self, i: int) -> tuple[bytes, None]:
        """The text, or the image that the row names."""
        value = self._value(i)
        if self.are_paths:
            return paths.content(self.path.parent / value.strip()), None
        return value.encode("utf-8", "surrogateescape").strip(), None

    def name(self, i: int) -> str | int:
        """The path that the row names, or its line."""
        with contextlib.suppress(ValueError):  # what is wrong with the row is said elsewhere
            if self.are_paths:
                return paths.shown(self._value(i).strip())
        return self.lines[i]

    def _value(self, i: int) -> str:
        """What row i holds in its field.

        Raises:
            ValueError: what is wrong with it.
        """
        content = os.pread(self.file.fileno(), self.ends[i] - self.starts[i], self.starts[i])
        if self._look() != self._state:
            raise InputError(f"{self.path} changed while it was read: start again.")
        if self.kind == "txt":
            return _line(content)
        if self.kind == "jsonl":
            return _of_json(_line(content), self.field)
        row = next(self._reader(io.BytesIO(content)))
        if len(row) != len(self.columns):
            raise ValueError(f"the row has {len(row)} columns, not {len(self.columns)}")
        return row[self.columns.index(self.field)]

    def _single(self) -> Iterator[tuple[int, int, int]]:
        """Rows that are a line each; of JSON lines, those that are not blank."""
        end = self._first
        for number, content in enumerate(self._contents(), 1):
            start, end = end, self.file.tell()
            if self.kind == "txt" or _line(content).strip():
                yield start, end, number

    def _whole(self) -> Iterator[tuple[int, int, int]]:
        """Rows that may be several lines; the first names the columns."""
        reader = self._reader(self._contents())
        try:
            self.columns = next(reader, [])
            if self.field not in self.columns:
                names = ", ".join(map(paths.shown, self.columns)) or "none"
                raise InputError(
                    f"{self.path} has no column {self.field!r}, only {names}: give --field, or a "
                    "first line with the names of the columns."
                )
            end = self.file.tell()
            for row in reader:
                start, end = end, self.file.tell()
                if row:
                    yield start, end, reader.line_num
        except csv.Error as error:
            raise InputError(f"{self.path}, line {reader.line_num}: {error}.") from None

    def _reader(self, contents: Iterator[bytes]) -> Any:
        # A quotation mark in a .tsv is a character as any other; a .csv quotes its commas with it.
        dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        csv.field_size_limit(2**31 - 1)  # of one text
        lines = (_line(content) + "\n" for content in contents)
        return csv.reader(lines, strict=True, **(dialect if self.kind == "tsv" else {}))

    def _contents(self) -> Iterator[bytes]:
        """Lines of the file, by line feeds alone: a text may hold what else is cut at."""
        self.file.seek(self._first)
        while content := self.file.readline():
            yield content

    def _digest(self) -> str:
        """Of the content, of what is read of it, and of the files that it names."""
        digest = hashlib.sha256(json.dumps([self.kind, self.field])[:-1].encode() + b", [")
        for i in range(len(self)) if self.are_paths else ():
            text = json.dumps(self._named(i))
            digest.update(f"{', ' if i else ''}{text}".encode())
        digest.update(b"]]")
        self.file.seek(0)
        while block := self.file.read(BLOCK):
            digest.update(block)
        return digest.hexdigest()

    def _named(self, i: int) -> tuple[int, int]:
        """The state of the file that a row names."""
        try:
            return paths.state(self.path.parent / self._value(i).strip())
        except ValueError:
            return 0, 0

    def _look(self) -> tuple[int, int]:
        found = os.fstat(self.file.fileno())
        return found.st_size, found.st_mtime_ns


def _opened(path: Path) -> IO[bytes]:
    """A file that can be read at any place: of what is none, as a pipe, a copy."""
    file = path.open("rb")
    if path.is_file():
        return file
    with file:
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        shutil.copyfileobj(file, copy)
        copy.flush()
        return copy


def _line(content: bytes) -> str:
    """Without its end; what is not UTF-8 becomes half characters, which are bytes again later."""
    return content.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")


def _of_json(line: str, field: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is not JSON: {error}") from None
    found = value.get(field) if isinstance(value, dict) else value
    if not isinstance(found, str):
        raise ValueError(f"the line has no text in {field!r}")
    return found
