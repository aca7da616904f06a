"""Turns SIGTERM and Ctrl-C into a request to save and stop; the ranks agree on the step."""

import signal
import threading
from types import FrameType

_requested = threading.Event()


def listen() -> None:
    """Installs handlers: the first signal requests a stop, a second Ctrl-C interrupts at once."""

    def request(number: int, frame: FrameType | None) -> None:
        _requested.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGTERM, request)
    signal.signal(signal.SIGINT, request)


def is_requested() -> bool:
    """Returns whether this process was requested to stop."""
    return _requested.is_set()
