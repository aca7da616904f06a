"""Runs a command that the kernel kills when the process that started it ends.

    python -I -S die_with_parent.py <pid of the parent> <command> ...

This program becomes the command, with the same pid. `subprocess` could do the same between fork and
exec (`preexec_fn`), but Python code there may deadlock if the parent has threads, and a parent with
TensorFlow or Horovod has many.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Has the kernel kill this process when `parent`, which started it, ends in any way."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


def main(parent: str, *command: str) -> None:
    """Becomes the command."""
    die_with(int(parent))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(*sys.argv[1:])
