"""Keeps from the user's terminal what libraries print there without a log level."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from app import errors


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keeps what C++ code writes to standard error; shows it if the code inside fails."""
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            yield
        except BaseException:
            chatter.seek(0)
            os.write(terminal, chatter.read())  # it may say why
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def no_lost_peers() -> None:
    """Keeps what Python prints when a destructor fails because another process is gone.

    TensorFlow's executor of a task waits for it once more as it is let go, at any time up to the
    end of this process; the supervisor says who was lost.
    """
    show, is_lost_peer = sys.unraisablehook, errors.is_lost_peer

    def show_others(failed: Any) -> None:
        if not is_lost_peer(failed.exc_value):
            show(failed)

    sys.unraisablehook = show_others
