"""Helps with paths that users give, with files below them, and with writing whole files."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from input import InputError


def expand_user(text: str) -> Path:
    """Expands `~` in a path that a user wrote; it stays if there is no home."""
    return Path(os.path.expanduser(text))  # Path.expanduser raises without a home


@contextlib.contextmanager
def plain(folder: Path) -> Iterator[str]:
    """Yields a name of a folder that TensorFlow can open, of letters, digits and slashes.

    TensorFlow reads names as patterns, so that it finds nothing in a folder `[1]`, and as UTF-8.
    Linux has another name for each folder that a process has opened.

    Raises:
        OSError: there is no such folder.
    """
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def state(file: Path | int) -> tuple[int, int]:
    """Returns size in bytes and time of change in ns of a regular file; 0, 0 for anything else.

    Args:
        file: its path, or the descriptor of an open file.
    """
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return 0, 0
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (0, 0)


def content(path: Path) -> bytes:
    """Reads a regular file; raises ValueError for anything else, as a pipe, which would block."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    return path.read_bytes()


def shown(text: str) -> str:
    """Returns a text that can be encoded: surrogates, which stand for other bytes, are replaced."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def below(folder: Path, follows_links: bool = False) -> Iterator[Path]:
    """Yields the relative paths of all files below a folder, readable or not.

    Hidden files and folders are left out.

    Args:
        folder: to walk.
        follows_links: whether to follow links to folders, to each folder once.

    Raises:
        InputError: a folder that cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise InputError(f"cannot read {error.filename}: {error.strerror}.")

    visited = set()
    for place, folders, files in os.walk(folder, onerror=fail, followlinks=follows_links):
        real = os.path.realpath(place)
        if real in visited:
            folders[:] = []
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name).relative_to(folder) for name in files if name[0] != ".")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that replaces it at the end: whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
