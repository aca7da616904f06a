r"""The rows of a file, for whoever reads it: where each is, and one at a time from the file.

    id,text\n1,"a\nb"\n\n2,c\n
             |-------|  |---|    starts and ends in bytes, and the first line of each for people

A process holds three numbers a row, however long the texts are. A table is parsed to find where
its rows end; what is wrong in a row is found when it is read, and is the same for whoever reads it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from input import InputError, columns, paths, plain
from input.columns import Dialect
from input.plain import MARK

BLOCK = 2**20  # bytes read at once for the digest


class Rows:
    """The rows of a file, and what each holds in some of its fields.

    Args:
        path: of the file.
        form: txt (a row is a line), csv or tsv (the first line names the columns), or jsonl (an
            object a line, or one list of them).
        fields: columns or keys that are read; of a txt, one name for the line.

    Attributes:
        lines: of the file, at which each row begins, counted from 1.

    Raises:
        InputError: a file that cannot be read, or not be cut into rows; no such column, or two;
            when a row is read, a file that changed.
    """

    def __init__(self, path: Path, form: str, fields: Sequence[str]) -> None:
        self.path, self.form, self.fields = path, form, tuple(fields)
        self.starts, self.ends, self.lines = array("q"), array("q"), array("q")
        self._columns: list[str] = []
        self._dialect = Dialect(",", True)
        try:
            self.file = plain.opened(path)
            self._state = self._look()
            self._first = len(MARK) if self.file.read(len(MARK)) == MARK else 0
            for start, end, line in self._found():
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
        """What row i holds in each field: a string, or in a jsonl any value; None if it lacks it.

        A byte that is not UTF-8 is half a character (surrogateescape).

        Raises:
            ValueError: what is wrong with it, in a sentence without its end.
        """
        content = os.pread(self.file.fileno(), self.ends[i] - self.starts[i], self.starts[i])
        if self._look() != self._state:
            raise InputError(f"{self.path} changed while it was read: start again.")
        if self.form == "txt":
            return [_line(content).removesuffix("\n")]
        if self.form == "jsonl":
            return _of_json(_line(content), self.fields)
        row = next(self._dialect.reader(_split(content)))
        if row == self._columns:
            raise ValueError(
                "the row repeats the names of the columns, as where files were joined: remove it"
            )
        if len(row) != len(self._columns):
            raise ValueError(
                f"the row has {len(row)} columns, not {len(self._columns)}: quote texts with "
                "commas in a .csv, and take tabs out of texts in a .tsv"
            )
        return [row[self._columns.index(field)] for field in self.fields]

    def digest(self, kind: Any) -> str:
        """Of the content, and of what is read of it.

        Args:
            kind: what is read, as JSON has it.
        """
        digest = hashlib.sha256(json.dumps(kind).encode())
        self.file.seek(0)
        while block := self.file.read(BLOCK):
            digest.update(block)
        return digest.hexdigest()

    def _found(self) -> Iterator[tuple[int, int, int]]:
        if self.form in ("csv", "tsv"):
            return self._of_table()
        self.file.seek(self._first)
        head = self.file.read(BLOCK).lstrip()
        return self._of_list() if self.form == "jsonl" and head[:1] == b"[" else self._of_lines()

    def _of_lines(self) -> Iterator[tuple[int, int, int]]:
        """Rows that are a line each; of JSON lines, those that are not blank."""
        end = self._first
        for number, line in enumerate(self._contents(), 1):
            start, end = end, self.file.tell()
            if self.form == "txt" or line.strip():
                yield start, end, number

    def _of_table(self) -> Iterator[tuple[int, int, int]]:
        """Rows that may be several lines; the first names the columns."""
        self._dialect = columns.find(self.form, self.fields, self._contents)
        reader = self._dialect.reader(self._contents())
        try:
            self._columns = next(reader, [])
            self._must_have_columns()
            end, line = self.file.tell(), reader.line_num
            for row in reader:
                start, end = end, self.file.tell()
                if row:
                    yield start, end, line + 1
                line = reader.line_num
        except csv.Error as error:
            raise InputError(f"{self.path}, line {reader.line_num}: {error}.") from None

    def _must_have_columns(self) -> None:
        names = ", ".join(map(paths.shown, self._columns)) or "none"
        for field in self.fields:
            if field not in self._columns:
                raise InputError(
                    f"{self.path} has no column {field!r}, only {names}: name another (--field of "
                    "predict, data.text_field, data.label_field), or give it a first line with the "
                    "names of the columns."
                )
            if self._columns.count(field) > 1:
                raise InputError(
                    f"{self.path} has {self._columns.count(field)} columns {field!r} ({names}): "
                    "give one of them another name."
                )

    def _of_list(self) -> Iterator[tuple[int, int, int]]:
        """Rows of one JSON list; it is decoded to find where they end."""
        self.file.seek(self._first)
        text = self.file.read().decode("utf-8", "surrogateescape")
        decoder, place, offset, line = json.JSONDecoder(), text.index("[") + 1, self._first, 1
        seen = 0

        def advance(to: int) -> None:
            nonlocal seen, offset, line
            passed = text[seen:to]
            offset += len(passed.encode("utf-8", "surrogateescape"))
            line += passed.count("\n")
            seen = to

        try:
            while text[(place := _skip(text, place))] != "]":
                _, end = decoder.raw_decode(text, place)
                advance(place)
                start, first = offset, line
                advance(end)
                yield start, offset, first
                place = _skip(text, end)
                if text[place] not in ",]":
                    raise ValueError(f"',' or ']' is missing after the record of line {line}")
                place += text[place] == ","
            if text[place + 1 :].strip():
                raise ValueError("something follows the list")
        except (ValueError, IndexError, RecursionError) as error:
            reason = "it ends within the list" if isinstance(error, IndexError) else error
            raise InputError(f"{self.path} is no list in JSON: {reason}.") from None

    def _contents(self) -> Iterator[str]:
        """Lines of the file, by line feeds only: a text may hold what else is cut at."""
        self.file.seek(self._first)
        while content := self.file.readline():
            yield _line(content)

    def _look(self) -> tuple[int, int]:
        found = os.fstat(self.file.fileno())
        return found.st_size, found.st_mtime_ns


def _line(content: bytes) -> str:
    """A line with one line feed at its end.

    A byte-order mark at its start is of a file that was joined to another.
    """
    text = content.removesuffix(b"\n").removesuffix(b"\r").removeprefix(MARK)
    return text.decode("utf-8", "surrogateescape") + "\n"


def _split(content: bytes) -> Iterator[str]:
    return map(_line, io.BytesIO(content))


def _skip(text: str, place: int) -> int:
    """The next character of JSON that is no white space."""
    while text[place] in " \t\r\n":
        place += 1
    return place


def _of_json(line: str, fields: Sequence[str]) -> list[Any]:
    """Values of an object; a string is that of the first field."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is not JSON: {error}") from None
    if isinstance(value, str):
        value = {fields[0]: value}
    if not isinstance(value, dict):
        raise ValueError("the line is not a JSON object")
    return [value.get(field) for field in fields]
