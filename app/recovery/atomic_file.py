"""Writes files that other processes see either whole or not at all, even if this one is killed.

Nothing waits for the disk: after a power failure a file may be lost. A checkpoint must not be, and
waits (`manifest.write`).
"""

from collections.abc import Iterable
from pathlib import Path


def write(path: Path, chunks: Iterable[bytes]) -> None:
    """Writes a file beside `path` first, and then replaces `path` by it.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    partial = path.with_name(f".{path.name}")  # a later write replaces one that was left
    with partial.open("wb") as file:
        file.writelines(chunks)
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Does the same with a text, in UTF-8."""
    write(path, [text.encode()])
