"""How TensorFlow comes into a process: without chatter, and alone."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator

from app.reporting import chatter


def tensorflow() -> None:
    """Imports TensorFlow, and Keras with it.

    Keras imports scikit-learn and Matplotlib wherever they are installed, for wrappers and
    pictures that nobody asks for here: 2 of the 5 s of CPU time that it took every rank.
    """
    gc.disable()  # nothing of it is garbage, and looking for some takes a tenth of the time
    with chatter.capture_native_stderr(), hidden("matplotlib", "sklearn"):
        import tensorflow
    gc.freeze()
    gc.enable()
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "3":  # it has a log in Python too
        tensorflow.get_logger().setLevel("ERROR")


@contextlib.contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """Inside, packages that were not imported before cannot be; afterwards they can."""
    names = [name for name in packages if name not in sys.modules]
    for name in names:
        sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
