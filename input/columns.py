r"""How the columns of a file are separated: found by its content.

    .csv    , or ; or tab or |    the first that gives the columns that are wanted
    .tsv    tab

A .csv quotes its commas. A .tsv does so or not: `"good"\tpos` is quoted if every field that
begins with a quotation mark ends with one, or if only so all rows have the same columns; else a
quotation mark is a character as any other.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

DELIMITERS = (",", ";", "\t", "|")


class Dialect(NamedTuple):
    """What separates fields, and whether quotation marks enclose them."""

    delimiter: str
    is_quoted: bool

    def reader(self, lines: Iterable[str]) -> Any:
        """Rows as lists of fields; raises csv.Error for what is not of this dialect."""
        csv.field_size_limit(2**31 - 1)  # of one text
        if self.is_quoted:
            return csv.reader(lines, delimiter=self.delimiter, strict=True)
        return csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE, strict=True)


def find(form: str, fields: Sequence[str], lines: Callable[[], Iterator[str]]) -> Dialect:
    """The dialect of a file.

    Args:
        form: csv or tsv.
        fields: columns that are wanted.
        lines: reads the file from its start.
    """
    if form == "tsv":
        return Dialect("\t", _is_quoted(lines))
    for delimiter in DELIMITERS:
        dialect = Dialect(delimiter, True)
        if set(fields) <= set(_header(dialect, lines)):
            return dialect
    return Dialect(",", True)


def _header(dialect: Dialect, lines: Callable[[], Iterator[str]]) -> list[str]:
    try:
        return next(dialect.reader(lines()), [])
    except csv.Error:
        return []


def _is_quoted(lines: Callable[[], Iterator[str]]) -> bool:
    """Whether quotation marks enclose fields of a .tsv."""
    widths, enclosed, open_ended = set(), 0, 0
    for line in lines():
        if not line.strip("\n"):
            continue
        fields = line.rstrip("\n").split("\t")
        widths.add(len(fields))
        for field in fields if '"' in line else ():
            if field.startswith('"'):
                is_whole = len(field) > 1 and field.endswith('"')
                enclosed, open_ended = enclosed + is_whole, open_ended + (not is_whole)
    if not enclosed + open_ended:
        return False
    if len(widths) > 1:
        return _is_even(Dialect("\t", True), lines)
    return not open_ended and _is_even(Dialect("\t", True), lines)


def _is_even(dialect: Dialect, lines: Callable[[], Iterator[str]]) -> bool:
    """Whether all rows have as many columns, read so."""
    try:
        return len({len(row) for row in dialect.reader(lines()) if row}) == 1
    except csv.Error:
        return False
