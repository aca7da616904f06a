"""SIGTERM (or Ctrl-C) asks a rank to save and stop; the ranks agree on the step."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_asked = threading.Event()


def listen() -> None:
    """From now on the first signal asks; a second Ctrl-C interrupts at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        _asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)


def is_asked() -> bool:
    """Whether this process was asked to stop."""
    return _asked.is_set()
