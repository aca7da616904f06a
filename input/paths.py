"""Files that a person names: what they hold, whether they changed, and how they are written."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path


def of_user(text: str) -> Path:
    """A path that a person wrote, with their home for `~`, which stays where there is no home."""
    return Path(os.path.expanduser(text))  # Path's own fails there


@contextlib.contextmanager
def plain(folder: Path) -> Iterator[str]:
    """A folder's name for TensorFlow, of digits, letters and slashes, while the block runs.

    TensorFlow takes the name of what it reads for a pattern, so that it finds nothing in a folder
    `[1]`, and every name for UTF-8. Linux has another name for each folder that a process holds.

    Raises:
        OSError: there is no such folder.
    """
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def state(path: Path) -> tuple[int, int]:
    """Size and time of a file; nothing, if there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return 0, 0
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (0, 0)


def content(path: Path) -> bytes:
    """Of a file; a pipe would be waited for."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    return path.read_bytes()


def shown(text: str) -> str:
    """As it can be written: half characters, which stand for other bytes, are replaced."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def below(
    folder: Path, fail: Callable[[OSError], None], follows_links: bool = False
) -> Iterator[Path]:
    """All files below a folder, by their paths from it, whether they can be read or not.

    What has a hidden name, or is in a folder that has, is left out.

    Args:
        folder: is walked.
        fail: takes the error of a folder that cannot be listed.
        follows_links: to folders, unless they lead to where the walk has been.
    """
    been = set()
    for place, folders, files in os.walk(folder, onerror=fail, followlinks=follows_links):
        real = os.path.realpath(place)
        if real in been:
            folders[:] = []
            continue
        been.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name).relative_to(folder) for name in files if name[0] != ".")
