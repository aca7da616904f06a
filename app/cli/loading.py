"""Imports TensorFlow quietly, and without the packages that Keras imports beside it."""

from __future__ import annotations

import contextlib
import gc
import importlib.abc
import os
import sys
from collections.abc import Iterator

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


class _Hide(importlib.abc.MetaPathFinder):
    """Finds some packages missing; Python asks it before its own finders."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        """Raises ModuleNotFoundError for a hidden package; leaves others to the next finder."""
        if name in self.packages:
            raise ModuleNotFoundError(f"{name} is hidden by app.cli.loading", name=name)


@contextlib.contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """Hides packages inside: they seem not to be installed, unless they were imported before."""
    finder = _Hide(packages)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
