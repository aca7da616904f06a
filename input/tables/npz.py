"""Reads a folder of `.npz` files by index: the first axis of every array counts the examples.

What `np.savez` wrote is mapped into memory. What `np.savez_compressed` wrote is decompressed a file
at a time; the last few stay in memory.
"""

from __future__ import annotations

import functools
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input import InputError, failures
from input.source import Ids
from input.tables.columns import Columns

KEPT = 8  # decompressed arrays
LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of the name and of the extra field


class NpzFolder(Columns):
    """Arrays of several files, one after the other.

    Raises:
        InputError: no file, or one that is damaged, or has other arrays than the first.
    """

    def __init__(self, path: str, files: Sequence[Path]) -> None:
        self.path, self.files, self.classes = path, list(files), {}
        self.names, lengths = (), []
        for file in self.files:
            try:
                arrays = _headers(file)
            except (OSError, ValueError, zipfile.BadZipFile) as error:
                raise InputError(f"cannot read {file}: {failures.sentence(error)}.") from None
            self.names = self.names or tuple(arrays)
            if set(arrays) != set(self.names):
                raise InputError(
                    f"{file} has the arrays {', '.join(arrays)}, not {', '.join(self.names)} as "
                    f"{self.files[0].name}."
                )
            counts = {name: shape[0] if shape else 0 for name, shape in arrays.items()}
            if len(set(counts.values())) != 1:
                raise InputError(f"{file}: the arrays have different lengths: {counts}.")
            lengths.append(next(iter(counts.values())))
        self.ends = np.cumsum(lengths)
        self._array = functools.lru_cache(None if all(map(_is_stored, files)) else KEPT)(_array)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def values(self, ids: Ids, name: str) -> Sequence[Any]:
        """See the base class."""
        return [self._array(file, name)[row] for file, row in map(self._place, ids)]

    def name(self, row: int) -> str:
        """See the base class."""
        file, place = self._place(row)
        return f"row {place} of {file}"

    def _place(self, row: int) -> tuple[Path, int]:
        at = int(np.searchsorted(self.ends, row, "right"))
        return self.files[at], int(row) - int(self.ends[at - 1] if at else 0)


def _headers(file: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a file's arrays."""
    shapes = {}
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0
                read = read if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
                if dtype.hasobject:
                    raise ValueError(f"array {entry.filename} holds Python objects")
                shapes[entry.filename.removesuffix(".npy")] = shape
    return shapes


def _is_stored(file: Path) -> bool:
    with zipfile.ZipFile(file) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def _array(file: Path, name: str) -> np.ndarray:
    """Returns an array of a file, mapped if it is not compressed."""
    with zipfile.ZipFile(file) as archive:
        entry = archive.getinfo(f"{name}.npy")
        if entry.compress_type != zipfile.ZIP_STORED:
            with archive.open(entry) as member:
                loaded: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
                return loaded
    with file.open("rb") as raw:
        raw.seek(entry.header_offset)
        name_length, extra = LOCAL_HEADER.unpack(raw.read(LOCAL_HEADER.size))
        raw.seek(name_length + extra, 1)
        version = np.lib.format.read_magic(raw)
        read = np.lib.format.read_array_header_1_0
        read = read if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(raw)
        order: Any = "F" if is_fortran else "C"
        return np.memmap(file, dtype, "r", raw.tell(), shape, order)
