"""What is to be predicted: the files of a folder, the rows of a file, or a split; by number.

An item that cannot be read keeps its place: `fetch` says what is wrong with it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from input import InputError, paths
from input.rows import Rows

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
