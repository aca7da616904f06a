"""Imports TensorFlow quietly, and without the packages that Keras imports beside it."""

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from typing import Any

from app.reporting import chatter


def tensorflow() -> None:
    """Imports TensorFlow, and Keras with it.

    Keras imports scikit-learn and Matplotlib wherever they are installed, for wrappers and plots
    that nothing of this project uses: 2 of the 5 s of CPU time that it took every rank.
    """
    gc.disable()  # there is no garbage yet, and looking for some takes a tenth of the time
    with chatter.capture_native_stderr(), hidden("matplotlib", "sklearn"):
        import tensorflow
    gc.freeze()
    gc.enable()
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "3":  # it has a log in Python too
        tensorflow.get_logger().setLevel("ERROR")


@contextlib.contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """Hides packages inside: they seem not to be installed, unless they were imported before."""
    absent: dict[str, Any] = dict.fromkeys(set(packages) - sys.modules.keys())
    sys.modules.update(absent)  # where None is, Python raises ModuleNotFoundError
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
