"""Keeps from the user's terminal what libraries print there before they read a log level."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator


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
