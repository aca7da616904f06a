"""Locks a workdir for one job. The kernel releases the lock when its process ends, however."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from app.errors import UsageError


@contextlib.contextmanager
def held(workdir: Path, flag: str = "--workdir") -> Iterator[None]:
    """Holds a workdir's lock; `flag` is the flag that names the workdir, for the message.

    Raises:
        UsageError: another job, which the message names, holds the lock.
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
