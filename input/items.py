"""What is to be predicted: the files of a folder, the rows of a file, or a split; by number.

An item that cannot be read keeps its place: `fetch` says what is wrong with it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from input import InputError

if TYPE_CHECKING:  # it imports TensorFlow, which files and rows do without
    from input.sources import Source

SUFFIXES = {".txt": "txt", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl"}


class Items(Protocol):
    """Images as they are encoded, or texts in UTF-8, in order.

    Attributes:
        digest: of what they are, so that a job that goes on later can tell.
    """

    digest: str

    def __len__(self) -> int: ...

    def fetch(self, i: int) -> tuple[bytes, int | None]:
        """Item i, and its class if that is known.

        Raises:
            ValueError, OSError: what is wrong with it.
        """
        ...

    def name(self, i: int) -> str | int:
        """Its file, its line or its number."""
        ...


class Files(Items):
    """All files below a folder but hidden ones, sorted by their paths."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = sorted(_below(folder))
        if not self.paths:
            raise InputError(f"{folder} has no files: put images there.")
        listing = [(str(p), _state(folder / p)) for p in self.paths]
        self.digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, i: int) -> tuple[bytes, None]:
        """The file."""
        return _content(self.folder / self.paths[i]), None

    def name(self, i: int) -> str:
        """Its path below the folder."""
        return _shown(str(self.paths[i]))


@dataclass(frozen=True)
class Row:
    """A row of a file: its line, and what its field holds or what is wrong with it."""

    line: int
    value: str = ""
    error: str = ""


class Rows(Items):
    """The rows of a file: texts, or paths of images from where the file is.

    Raises:
        InputError: a file that cannot be read, or not be cut into rows; no such column.
    """

    def __init__(self, path: Path, kind: str, field: str, are_paths: bool) -> None:
        self.path, self.are_paths = path, are_paths
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}.") from None
        # What is not UTF-8 becomes half characters, and is found again row by row.
        text = content.decode("utf-8-sig", "surrogateescape")
        if kind == "jsonl":
            self.rows = list(_json_rows(text, field))
        elif kind == "txt":
            self.rows = [Row(n, line) for n, line in enumerate(_lines(text), 1)]
        else:
            self.rows = list(_columns(text, path, kind, field))
        if not self.rows:
            raise InputError(f"{path} has no rows.")
        states = [_state(path.parent / row.value.strip()) for row in self.rows if are_paths]
        about = json.dumps([kind, field, states])
        self.digest = hashlib.sha256(about.encode() + content).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, i: int) -> tuple[bytes, None]:
        """The text, or the image that the row names."""
        row = self.rows[i]
        if row.error:
            raise ValueError(row.error)
        if self.are_paths:
            return _content(self.path.parent / row.value.strip()), None
        return row.value.encode("utf-8", "surrogateescape").strip(), None

    def name(self, i: int) -> str | int:
        """The path that the row names, or its line."""
        row = self.rows[i]
        return row.line if row.error or not self.are_paths else _shown(row.value.strip())


class Split(Items):
    """A split of the experiment's own data, or some of it, with its labels."""

    def __init__(self, source: Source, digest: str) -> None:
        self.source, self.digest = source, digest

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, i: int) -> tuple[bytes, int | None]:
        """The example; glue's tests have no labels."""
        (example,), (label,) = self.source.fetch([i])
        return example, label if 0 <= label < len(self.source.classes) else None

    def name(self, i: int) -> int:
        """Its number."""
        return i


def open_items(text: str, kind: str, form: str | None, field: str | None) -> Items:
    """A folder or a file.

    Args:
        text: its path.
        kind: "image" or "text".
        form: txt, csv, tsv or jsonl; None: as the name of the file says.
        field: the column or key; None: text, or path.

    Raises:
        InputError: nothing there, or nothing that can be predicted.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{text} cannot be found ({error}): name another.") from None
    if path.is_dir():
        if kind != "image":
            raise InputError(
                f"{path} is a folder, but a model of texts needs a file: name a .txt, .csv, .tsv "
                "or .jsonl."
            )
        return Files(path)
    form = form or SUFFIXES.get(path.suffix)
    if not path.exists():
        raise InputError(f"{path} does not exist: name a folder, a file, or split:<name>.")
    if not form:
        raise InputError(
            f"{path} may be of any format: name it .txt, .csv, .tsv or .jsonl, or give --format."
        )
    are_paths = kind == "image"
    return Rows(path, form, field or ("path" if are_paths else "text"), are_paths)


def _below(folder: Path) -> Iterator[Path]:
    """All that is no folder and not hidden, whether it can be read or not."""

    def fail(error: OSError) -> None:
        raise InputError(f"cannot read {error.filename}: {error.strerror}.")

    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield Path(place, name).relative_to(folder)


def _state(path: Path) -> tuple[int, int]:
    """Size and time of a file; nothing, if there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _content(path: Path) -> bytes:
    """Of a file; a pipe would be waited for."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    return path.read_bytes()


def _lines(text: str) -> list[str]:
    """Lines by line feeds alone: a text may hold what else str.splitlines cuts at."""
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def _json_rows(text: str, field: str) -> Iterator[Row]:
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Row(number, error=f"the line is not JSON: {error}")
            continue
        found = value.get(field) if isinstance(value, dict) else value
        if isinstance(found, str):
            yield Row(number, found)
        else:
            yield Row(number, error=f"the line has no text in {field!r}")


def _columns(text: str, path: Path, kind: str, field: str) -> Iterator[Row]:
    # A quotation mark in a .tsv is a character as any other; a .csv quotes its commas with it.
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    csv.field_size_limit(2**31 - 1)  # of one text
    lines = (line + "\n" for line in _lines(text))
    reader = csv.reader(lines, strict=True, **(dialect if kind == "tsv" else {}))
    try:
        names = next(reader, [])
        if field not in names:
            raise InputError(
                f"{path} has no column {field!r}, only {', '.join(map(_shown, names)) or 'none'}: "
                "give --field, or a first line with the names of the columns."
            )
        place = names.index(field)
        for row in reader:
            if row and len(row) != len(names):
                told = f"the row has {len(row)} columns, not {len(names)}"
                yield Row(reader.line_num, error=told)
            elif row:
                yield Row(reader.line_num, row[place])
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}.") from None


def _shown(text: str) -> str:
    """As it can be written: half characters, which stand for other bytes, are replaced."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
