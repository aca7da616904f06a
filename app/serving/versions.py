"""Finds the version of an exported model to serve, and checks it, without TensorFlow."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from app.errors import DataError, UsageError
from input import paths

EXTRA = Path("assets.extra", "scaleproof.json")


@dataclass(frozen=True)
class About:
    """What the export wrote about its model; all of it may be missing.

    Attributes:
        name: in the model's path.
        kind: of its inputs, `text` or `image`; None if it is not known.
        classes: their names.
        variant: the numbers it computes in.
        step: of the training run that it is from.
    """

    name: str | None = None
    kind: str | None = None
    classes: tuple[str, ...] = ()
    variant: str | None = None
    step: int | None = None


@dataclass(frozen=True)
class ModelVersion:
    """An exported version of a model: its SavedModel's folder, name and number."""

    folder: Path
    name: str
    number: int
    about: About


def find(model: Path, name: str | None = None) -> ModelVersion:
    """Finds the newest version in a folder of versions, or takes the version folder itself.

    Raises:
        UsageError: there is none.
        DataError: it is damaged.
    """
    try:
        folder, number = newest(model)
        if not (folder / "saved_model.pb").read_bytes()[:1]:
            raise DataError(f"{folder / 'saved_model.pb'} is empty: export the model again.")
        about = read_about(folder / EXTRA)
    except OSError as error:
        raise UsageError(f"--model={model} cannot be read: {error.strerror}.") from None
    is_version = folder.name.isdecimal()
    name = name or about.name or (folder.parent if is_version else folder).name
    if not re.fullmatch(r"[\w.-]+", name):
        raise UsageError(
            f"a model's name is part of its path, so {name!r} must be of letters, digits and _.- "
            "only: give another --name."
        )
    return ModelVersion(folder, name, number, about)


def newest(model: Path) -> tuple[Path, int]:
    """Returns the folder and number of the version to serve; a folder without one is version 1.

    Raises:
        UsageError: there is none.
    """
    model = paths.expand_user(str(model)).resolve()
    if not model.is_dir():
        what = "is a file" if model.exists() else "does not exist"
        raise UsageError(f"--model={model} {what}: give a folder that `./run.sh export` wrote.")
    if (model / "saved_model.pb").is_file():
        return model, int(model.name) if model.name.isdecimal() else 1
    versions = {int(p.name): p for p in model.iterdir() if p.name.isdecimal() and p.is_dir()}
    newest = max(versions, default=0)
    if not versions or not (versions[newest] / "saved_model.pb").is_file():
        where = versions[newest] if versions else model
        raise UsageError(
            f"{where} is not a SavedModel, as it holds no saved_model.pb"
            f"{'' if versions else ' and no folder with a version number'}: give --model a folder "
            "that `./run.sh export` wrote."
        )
    return versions[newest], newest


def read_about(path: Path) -> About:
    """Reads what the export wrote about the model, if anything.

    Raises:
        DataError: it cannot be read.
    """
    if not path.exists():
        return About()
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        if given["format"] != 1:
            raise ValueError(f"its format is {given['format']!r}, and 1 is known")
        kind = given.get("kind") if given.get("kind") in ("text", "image") else None
        classes = tuple(str(name) for name in given.get("classes") or ())
        return About(given.get("name"), kind, classes, given.get("variant"), given.get("step"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be used ({error}): export the model again, or rename the file to serve "
            "the model without it."
        ) from None
