"""Keeps processes from outliving the one that started them: no orphans, whatever is killed."""

import contextlib
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from app.launch import die_with_parent as program

PR_SET_CHILD_SUBREAPER = 36


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent ends, in any way."""
    program.die_with(os.getppid())


def bound(command: Sequence[str]) -> list[str]:
    """Returns a command that does the same, and that the kernel kills when this process ends.

    To be started by a thread that lives as long as the process: the kernel watches the thread.
    """
    return [sys.executable, "-I", "-S", program.__file__, str(os.getpid()), *command]


def start(
    command: Sequence[str], variables: Mapping[str, str], **options: Any
) -> subprocess.Popen[bytes]:
    """Starts a command that ends with this process and reads nothing.

    Args:
        command: what to run.
        variables: of its environment, beside this process's own.
        options: of `subprocess.Popen`.
    """
    env = {**os.environ, **variables}
    return subprocess.Popen(bound(command), env=env, stdin=subprocess.DEVNULL, **options)


def run(command: Sequence[str], log: Path, **variables: str) -> int:
    """Runs a command that ends with this process, its output in a log; returns its exit code.

    Args:
        command: what to run.
        log: the file for all that it prints.
        variables: of its environment, beside this process's own.
    """
    with log.open("w") as output:
        return start(command, variables, stdout=output, stderr=output).wait()


def last_line(log: Path) -> str:
    """Returns the last line that a process printed to a log, and where the log is."""
    lines = [line.strip() for line in log.read_text().splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'it printed nothing'}; see {log}"


def adopt_orphans() -> None:
    """Makes descendants whose parent ends children of this process, so that it can end them."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def status(pid: int) -> str | None:
    """Returns the state of a process, as psutil names it; None if it does not live."""
    try:
        found = psutil.Process(pid).status()
    except psutil.Error:
        return None
    return None if found == psutil.STATUS_ZOMBIE else found


def descendants() -> dict[int, psutil.Process]:
    """Returns all living processes below this one, by pid."""
    return {p.pid: p for p in psutil.Process().children(recursive=True) if status(p.pid)}


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
        own = [p for p in psutil.Process().children() if p.pid in left]  # by now, as parents end
        psutil.wait_procs(own, timeout=0.5)
