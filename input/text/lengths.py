"""Finds the lengths of texts once a machine, and stores them beside the prepared data.

    text_lengths/<key>.npy     int64 [N]; the key is a digest of what the lengths depend on
                /<key>.lock    held by the process that finds them; others wait for its file

The work is done in pieces, so that whoever opens the data can report progress between them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np

from input import paths

WAIT = 0.2  # seconds between attempts to take the lock

Measure = Callable[[], Iterator[np.ndarray]]  # yields the lengths, some at a time


def path_of(about: Sequence[str], data_dir: str) -> Path | None:
    """Returns where lengths are stored; None: nowhere, without `data_dir`.

    Args:
        about: what the lengths depend on.
        data_dir: of the prepared data.
    """
    if not data_dir:
        return None
    key = hashlib.sha256(json.dumps(list(about)).encode()).hexdigest()[:16]
    return paths.expand_user(data_dir) / "text_lengths" / f"{key}.npy"


def find(path: Path | None, measure: Measure) -> Generator[None, None, np.ndarray]:
    """Returns the stored lengths, or measures and stores them; yields between pieces.

    Args:
        path: where they are stored, if it can be written; None: nowhere.
        measure: finds them.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # another user's folder can be read, not written
            if path and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                yield from _lock(stack.enter_context(path.with_suffix(".lock").open("w")).fileno())
        if path and path.exists():
            return np.load(path)
        pieces = [np.zeros(0, np.int64)]
        for piece in measure():
            pieces.append(piece)
            yield
        lengths = np.concatenate(pieces)
        with contextlib.suppress(OSError):
            save(path, lengths)
        return lengths


def save(path: Path | None, lengths: np.ndarray) -> None:
    """Stores lengths, whole or not at all."""
    if path:
        with paths.replacing(path) as partial:
            np.save(partial, lengths)


def _lock(file: int) -> Iterator[None]:
    """Takes a lock that ends when the file is closed."""
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(WAIT)
            yield
