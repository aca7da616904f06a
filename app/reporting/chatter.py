"""Keeps off the terminal what libraries print to it without a log level."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from app import errors


@contextlib.contextmanager
def capture_native_stderr() -> Iterator[None]:
    """Captures what C++ code writes to standard error; shows it if the code inside fails."""
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            yield
        except BaseException:
            chatter.seek(0)
            os.write(terminal, chatter.read())  # it may explain the failure
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def silence_lost_peers() -> None:
    """Silences what Python prints when a destructor fails because another process is gone.

    TensorFlow's executor of a remote task waits for it once more when it is deleted, at any time up
    to the end of this process; the supervisor reports who was lost.
    """
    show, is_lost_peer = sys.unraisablehook, errors.is_lost_peer

    def show_others(failed: Any) -> None:
        if not is_lost_peer(failed.exc_value):
            show(failed)

    sys.unraisablehook = show_others
