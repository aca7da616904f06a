"""Processes end with whoever started them: no orphan, whatever is killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_prctl = ctypes.CDLL(None).prctl  # looked up once, not between fork and exec


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent ends, however it ends.

    Launchers give it to `subprocess.Popen` as `preexec_fn`, and some have threads by then. Between
    fork and exec a process has none of them, so that a lock that one held is never released: this
    function must take none. It does nothing but system calls: no import, no look-up of a symbol.
    """
    parent = os.getppid()
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended in between
        os._exit(1)


def adopt_orphans() -> None:
    """Descendants whose parent ends become children of this process, so that it can end them."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def descendants() -> dict[int, psutil.Process]:
    """All living processes below this one, by pid."""
    below = psutil.Process().children(recursive=True)
    return {process.pid: process for process in below if _lives(process)}


def kill_descendants(limit: float = 10) -> None:
    """Kills every descendant of this process, and waits until none is left.

    Raises:
        TimeoutError: one is left after `limit` seconds (it hangs in the kernel).
    """
    end = time.monotonic() + limit
    while left := descendants():
        if time.monotonic() > end:
            raise TimeoutError(f"processes {sorted(left)} do not end")
        for process in left.values():
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs([p for p in left.values() if _is_child(p)], timeout=0.5)


def _is_child(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # its own parent was faster
        return process.ppid() == os.getpid()
    return False


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
