"""What is to be predicted: the files of a folder, the rows of a file, or a split; by number.

An item that cannot be read keeps its place: `fetch` says what is wrong with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from input import InputError, paths, plain
from input.rows import Rows

if TYPE_CHECKING:  # it imports TensorFlow, which files and rows do without
    from input.sources import Source


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
        self.paths = sorted(paths.below(folder, _fail))
        if not self.paths:
            raise InputError(f"{folder} has no files: put images there.")
        listing = [(str(p), paths.state(folder / p)) for p in self.paths]
        self.digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, i: int) -> tuple[bytes, None]:
        """The file."""
        return paths.content(self.folder / self.paths[i]), None

    def name(self, i: int) -> str:
        """Its path below the folder."""
        return paths.shown(str(self.paths[i]))


class OfRows(Items):
    """The texts of a file, or the images that it names, from where the file is."""

    def __init__(self, rows: Rows, are_paths: bool) -> None:
        self.rows, self.are_paths = rows, are_paths
        states = [self._state(i) for i in range(len(rows))] if are_paths else []
        self.digest = rows.digest([rows.form, rows.fields[0], states])

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, i: int) -> tuple[bytes, None]:
        """The text, or the image that the row names."""
        value = self._value(i)
        if self.are_paths:
            return paths.content(self.rows.path.parent / value), None
        return value.encode("utf-8", "surrogateescape"), None

    def name(self, i: int) -> str | int:
        """The path that the row names, or its line."""
        with contextlib.suppress(ValueError):  # what is wrong with the row is said elsewhere
            if self.are_paths:
                return paths.shown(self._value(i))
        return self.rows.lines[i]

    def _value(self, i: int) -> str:
        (value,), (field,) = self.rows.values(i), self.rows.fields
        if not isinstance(value, str):
            raise ValueError(f"the row has no text in {field!r}")
        return value.strip()

    def _state(self, i: int) -> tuple[int, int]:
        """The state of the file that a row names."""
        try:
            return paths.state(self.rows.path.parent / self._value(i))
        except ValueError:
            return 0, 0


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
    path = paths.of_user(text)
    if path.is_dir():
        if kind != "image":
            raise InputError(
                f"{path} is a folder, but a model of texts needs a file: name a .txt, .csv, .tsv "
                "or .jsonl."
            )
        return Files(path)
    form = form or plain.form_of(path)
    if not path.exists():
        raise InputError(f"{path} does not exist: name a folder, a file, or split:<name>.")
    if not form and not plain.is_file_name(path.name):
        raise InputError(
            f"{path} may be of any format: name it .txt, .csv, .tsv or .jsonl, or give --format."
        )
    are_paths = kind == "image"
    field = field or ("path" if are_paths else "text")
    return OfRows(Rows(path, form or "csv", [field]), are_paths)


def _fail(error: OSError) -> None:
    raise InputError(f"cannot read {error.filename}: {error.strerror}.")
