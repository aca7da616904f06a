"""Chooses where data sets are prepared: as TFDS_DATA_DIR says, in the home, or in the project."""

import os
from pathlib import Path

NAME = "tensorflow_datasets"  # in the home, where TensorFlow Datasets has them too
PROJECT = Path(__file__).parents[2]


def data_dir() -> str:
    """Returns the folder of prepared data sets that is used if none is given."""
    if chosen := os.environ.get("TFDS_DATA_DIR"):
        return chosen
    home = Path(os.path.expanduser("~"))  # stays `~` for a user without one
    is_there = (home / NAME).is_dir()  # data may have been prepared by whoever can write
    if is_there or (home.is_absolute() and os.access(home, os.W_OK | os.X_OK)):
        return f"~/{NAME}"
    return str(PROJECT / NAME)
