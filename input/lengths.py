"""Lengths of texts: found once a machine, and kept beside the prepared data.

    text_lengths/<key>.npy     int64 [N]; the key is a digest of what the lengths depend on
                /<key>.lock    held by the process that finds them; others wait for its file

All of it comes in pieces: whoever opens the data can show signs of life between them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np

WAIT = 0.2  # seconds between two looks at what another process holds

Measure = Callable[[], Iterator[np.ndarray]]  # gives the lengths, some at a time


def find(path: Path | None, measure: Measure) -> Generator[None, None, np.ndarray]:
    """Returns the lengths, as they are kept or from `measure`; yields between pieces.

    Args:
        path: where they are kept, or will be if it can be written; None: nowhere.
        measure: what finds them.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a folder of another's is read, not written
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
    """Keeps lengths, whole or not at all."""
    if not path:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.npy")
    np.save(partial, lengths)
    partial.replace(path)


def _lock(file: int) -> Iterator[None]:
    """Takes a lock that ends with its file."""
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(WAIT)
            yield
