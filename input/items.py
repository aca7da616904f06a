"""Reads what is to be predicted by index: the files of a folder, the rows of a file, or a split.

An item that cannot be read keeps its place: `fetch` says what is wrong with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Protocol

from input import InputError, paths, rows
from input.rows import Rows
from input.source import Source


class Items(Protocol):
    """Encoded images, or texts in UTF-8, in order.

    Attributes:
        digest: of the items, by which a resumed job recognises its input.
    """

    digest: str

    def __len__(self) -> int: ...

    def fetch(self, i: int) -> tuple[bytes, int | None]:
        """Reads item i; returns it and its class, if that is known.

        Raises:
            ValueError, OSError: says what is wrong with it.
        """
        ...

    def name(self, i: int) -> str | int:
        """Returns the item's file, line or number."""
        ...


class Files(Items):
    """All files below a folder except hidden ones, sorted by their paths."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = sorted(paths.below(folder))
        if not self.paths:
            raise InputError(f"{folder} has no files: put images there.")
        listing = [(str(p), paths.state(folder / p)) for p in self.paths]
        self.digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, i: int) -> tuple[bytes, None]:
        """Reads the file."""
        return paths.content(self.folder / self.paths[i]), None

    def name(self, i: int) -> str:
        """Returns the file's path below the folder."""
        return paths.shown(str(self.paths[i]))


class OfRows(Items):
    """The texts in the rows of a file, or the images whose paths they give, relative to it."""

    def __init__(self, rows: Rows, are_paths: bool) -> None:
        self.rows, self.are_paths = rows, are_paths
        states = [self._state(i) for i in range(len(rows))] if are_paths else []
        self.digest = rows.digest([rows.form, rows.fields[0], states])

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, i: int) -> tuple[bytes, None]:
        """Reads the text, or the image."""
        value = self._value(i)
        if self.are_paths:
            return paths.content(self.rows.path.parent / value), None
        return value.encode("utf-8", "surrogateescape"), None

    def name(self, i: int) -> str | int:
        """Returns the image's path, or the row's line."""
        with contextlib.suppress(ValueError):  # `fetch` says what is wrong with the row
            if self.are_paths:
                return paths.shown(self._value(i))
        return self.rows.lines[i]

    def _value(self, i: int) -> str:
        (value,), (field,) = self.rows.values(i), self.rows.fields
        if not isinstance(value, str):
            raise ValueError(f"the row has no text in {field!r}")
        return value.strip()

    def _state(self, i: int) -> tuple[int, int]:
        try:
            return paths.state(self.rows.path.parent / self._value(i))
        except ValueError:
            return 0, 0


class Split(Items):
    """A split of the experiment's own data, with its labels if it has any."""

    def __init__(self, source: Source, digest: str) -> None:
        self.source, self.digest = source, digest

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, i: int) -> tuple[bytes, int | None]:
        """Reads the example; the label is None in splits without labels, as glue's tests."""
        (example,), (label,) = self.source.fetch([i])
        is_class = isinstance(label, int) and 0 <= label < len(self.source.classes)
        return example, label if is_class else None

    def name(self, i: int) -> int:
        """Returns the example's number."""
        return i


class Numbered(Items):
    """Examples of a data set that are known by their numbers only: it reads them itself."""

    def __init__(self, count: int, digest: str) -> None:
        self.count, self.digest = count, f"{count} {digest}"

    def __len__(self) -> int:
        return self.count

    def fetch(self, i: int) -> tuple[bytes, int | None]:
        """Is not called: `DataSet.evaluation` reads the example."""
        raise NotImplementedError

    def name(self, i: int) -> int:
        """Returns the example's number."""
        return i


def open_items(text: str, kind: str, form: str | None, field: str | None) -> Items:
    """Opens a folder or a file.

    Args:
        text: its path, as the user gives it.
        kind: `image` or `text`.
        form: txt, csv, tsv or jsonl; None: by the file's name.
        field: the column or key; None: `text`, or `path` for images.

    Raises:
        InputError: there is no such folder or file, or it holds nothing that can be predicted.
    """
    path = paths.expand_user(text)
    if path.is_dir():
        if kind != "image":
            raise InputError(
                f"{path} is a folder, but a model of texts needs a file: name a .txt, .csv, .tsv "
                "or .jsonl."
            )
        return Files(path)
    form = form or rows.form_of(path)
    if not path.exists():
        raise InputError(f"{path} does not exist: name a folder, a file, or split:<name>.")
    if not form and not rows.is_file_name(path.name):
        raise InputError(
            f"{path} may be of any format: name it .txt, .csv, .tsv or .jsonl, or give --format."
        )
    are_paths = kind == "image"
    field = field or ("path" if are_paths else "text")
    return OfRows(Rows(path, form or "csv", [field]), are_paths)
