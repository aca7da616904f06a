r"""Finds and parses rows of text, tables and JSON; `rows.py` reads them by index.

    txt         a row is a line
    csv, tsv    the first line names the columns; a row may be several lines, with quoted breaks
    jsonl       a row is an object on a line, or a record of one list

Columns of a .csv are separated by the first of `, ; tab |` that gives the columns that are wanted,
those of a .tsv by tabs. A .csv quotes its commas. A .tsv quotes or not: `"good"\tpos` is quoted if
every field that begins with a quotation mark ends with one, or if only so all rows have the same
number of columns; else a quotation mark is an ordinary character.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from input import InputError, paths

BLOCK = 2**20  # bytes
DELIMITERS = (",", ";", "\t", "|")


class Span(NamedTuple):
    """Where a row is: its bytes in the file, and its first line, counted from 1."""

    start: int
    end: int
    line: int


class Lines:
    """A file whose rows are lines, and the base of other formats.

    Args:
        path: for messages.
        file: opened by `utf8.open_utf8`.
        form: txt, csv, tsv or jsonl.
        fields: columns or keys that are read.
    """

    def __init__(self, path: Path, file: IO[bytes], form: str, fields: Sequence[str]) -> None:
        self.path, self.file, self.form, self.fields = path, file, form, tuple(fields)
        file.seek(0)
        self.first = len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0

    def spans(self) -> Iterator[Span]:
        """Yields where each row is.

        Raises:
            InputError: the file cannot be split into rows.
        """
        end = self.first
        for number, line in enumerate(self._lines(), 1):
            start, end = end, self.file.tell()
            if self._is_row(line):
                yield Span(start, end, number)

    def values(self, content: bytes) -> list[Any]:
        """Parses a row's bytes to the values of the fields.

        Raises:
            ValueError: says what is wrong with it, without a full stop.
        """
        return [_decode(content).removesuffix("\n")]

    def columns_of(self, first: bytes) -> list[str]:
        """Returns the names of all columns; `first` is the first row."""
        return list(self.fields)

    def _is_row(self, line: str) -> bool:
        return True

    def _lines(self) -> Iterator[str]:
        """Yields lines, split only at line feeds: a text may hold other separators."""
        self.file.seek(self.first)
        while content := self.file.readline():
            yield _decode(content)


class Json(Lines):
    """JSON: an object a line, or one list of them. A string is the value of the first field."""

    def spans(self) -> Iterator[Span]:
        """See the base class."""
        self.file.seek(self.first)
        is_list = self.file.read(BLOCK).lstrip()[:1] == b"["
        return self._list_spans() if is_list else super().spans()

    def values(self, content: bytes) -> list[Any]:
        """See the base class; None is the value of a field that is missing."""
        try:
            value = json.loads(_decode(content))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the line is not JSON: {error}") from None
        if isinstance(value, str):
            value = {self.fields[0]: value}
        if not isinstance(value, dict):
            raise ValueError("the line is not a JSON object")
        return [value.get(field) for field in self.fields]

    def columns_of(self, first: bytes) -> list[str]:
        """See the base class: the keys of the first object."""
        value = json.loads(_decode(first))
        return list(value) if isinstance(value, dict) else super().columns_of(first)

    def _is_row(self, line: str) -> bool:
        return bool(line.strip())

    def _list_spans(self) -> Iterator[Span]:
        """Decodes a list to find where its records end."""
        self.file.seek(self.first)
        text = self.file.read().decode("utf-8", "surrogateescape")
        decoder, place, offset, line = json.JSONDecoder(), text.index("[") + 1, self.first, 1
        seen = 0

        def advance(to: int) -> None:
            nonlocal seen, offset, line
            passed = text[seen:to]
            offset += len(passed.encode("utf-8", "surrogateescape"))
            line += passed.count("\n")
            seen = to

        try:
            while text[(place := _skip_space(text, place))] != "]":
                _, end = decoder.raw_decode(text, place)
                advance(place)
                start, first_line = offset, line
                advance(end)
                yield Span(start, offset, first_line)
                place = _skip_space(text, end)
                if text[place] not in ",]":
                    raise ValueError(f"',' or ']' is missing after the record of line {line}")
                place += text[place] == ","
            if text[place + 1 :].strip():
                raise ValueError("something follows the list")
        except (ValueError, IndexError, RecursionError) as error:
            reason = "it ends within the list" if isinstance(error, IndexError) else error
            raise InputError(f"{self.path} is no list in JSON: {reason}.") from None


class Table(Lines):
    """A table whose first line names its columns."""

    def spans(self) -> Iterator[Span]:
        """See the base class; finds the delimiter and the columns first."""
        self.delimiter = self._find_delimiter()
        self.is_quoted = self.form == "csv" or self._is_quoted_tsv()
        reader = _reader(self._lines(), self.delimiter, self.is_quoted)
        try:
            self.columns: list[str] = next(reader, [])
            self._check_columns()
            end, line = self.file.tell(), reader.line_num
            for row in reader:
                start, end = end, self.file.tell()
                if row:
                    yield Span(start, end, line + 1)
                line = reader.line_num
        except csv.Error as error:
            raise InputError(f"{self.path}, line {reader.line_num}: {error}.") from None

    def values(self, content: bytes) -> list[Any]:
        """See the base class."""
        lines = map(_decode, io.BytesIO(content))
        row = next(_reader(lines, self.delimiter, self.is_quoted))
        if row == self.columns:
            raise ValueError(
                "the row repeats the names of the columns, as where files were joined: remove it"
            )
        if len(row) != len(self.columns):
            raise ValueError(
                f"the row has {len(row)} columns, not {len(self.columns)}: quote texts with "
                "commas in a .csv, and take tabs out of texts in a .tsv"
            )
        return [row[self.columns.index(field)] for field in self.fields]

    def columns_of(self, first: bytes) -> list[str]:
        """See the base class: the first line."""
        return self.columns

    def _check_columns(self) -> None:
        names = ", ".join(map(paths.shown, self.columns)) or "none"
        for field in set(self.fields) - set(self.columns):
            if near := difflib.get_close_matches(field, self.columns, 1):
                names += f" (did you mean {near[0]!r}?)"
        for field in self.fields:
            if field not in self.columns:
                raise InputError(
                    f"{self.path} has no column {field!r}, only {names}: name another (--field of "
                    "predict, data.text_field, data.label_field), or give it a first line with the "
                    "names of the columns."
                )
            if self.columns.count(field) > 1:
                raise InputError(
                    f"{self.path} has {self.columns.count(field)} columns {field!r} ({names}): "
                    "give one of them another name."
                )

    def _find_delimiter(self) -> str:
        if self.form == "tsv":
            return "\t"
        for delimiter in DELIMITERS:
            with contextlib.suppress(csv.Error):
                header: list[str] = next(_reader(self._lines(), delimiter), [])
                if set(self.fields) <= set(header):
                    return delimiter
        return ","

    def _is_quoted_tsv(self) -> bool:
        widths, enclosed, open_ended = set(), 0, 0
        for line in self._lines():
            if not line.strip("\n"):
                continue
            fields = line.rstrip("\n").split("\t")
            widths.add(len(fields))
            for field in fields if '"' in line else ():
                if field.startswith('"'):
                    is_whole = len(field) > 1 and field.endswith('"')
                    enclosed, open_ended = enclosed + is_whole, open_ended + (not is_whole)
        if not enclosed + open_ended or (len(widths) == 1 and open_ended):
            return False
        try:
            rows = _reader(self._lines(), "\t")
            return len({len(row) for row in rows if row}) == 1
        except csv.Error:
            return False


def _reader(lines: Iterable[str], delimiter: str, is_quoted: bool = True) -> Any:
    """Reads rows as lists of fields; raises csv.Error for lines that are separated otherwise."""
    csv.field_size_limit(2**31 - 1)  # of one text
    quoting: Any = csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
    return csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)


def _decode(content: bytes) -> str:
    """Decodes a line, which then ends with one line feed.

    A byte-order mark at its start is left from joining files.
    """
    text = content.removesuffix(b"\n").removesuffix(b"\r").removeprefix(BOM_UTF8)
    return text.decode("utf-8", "surrogateescape") + "\n"


def _skip_space(text: str, place: int) -> int:
    while text[place] in " \t\r\n":
        place += 1
    return place
