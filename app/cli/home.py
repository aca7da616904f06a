"""Where data sets are prepared: in the home, or in the project where there is none to write to."""

from __future__ import annotations

import os
from pathlib import Path

NAME = "tensorflow_datasets"  # in the home, where TensorFlow Datasets has them too
PROJECT = Path(__file__).parents[2]


def data_dir() -> str:
    """The folder of prepared data sets, if nobody names one."""
    home = Path(os.path.expanduser("~"))  # stays `~` for a user without one
    is_there = (home / NAME).is_dir()  # data may have been prepared by whoever can write
    if is_there or (home.is_absolute() and os.access(home, os.W_OK | os.X_OK)):
        return f"~/{NAME}"
    return str(PROJECT / NAME)
