"""One job a workdir. The kernel gives the lock back when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from app.errors import UsageError


@contextlib.contextmanager
def held(workdir: Path, flag: str = "--workdir") -> Iterator[None]:
    """Holds a workdir's lock; `flag` is what names it.

    Raises:
        UsageError: another job holds it; says which.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UsageError(
                f"{workdir} is used by another job ({file.read().strip() or 'just started'}): wait "
                f"for it, stop it, or give another {flag}."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} of {socket.gethostname()}\n")
        file.flush()
        yield
