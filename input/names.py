"""Names of classes: they go into graphs, JSON, CSV and lists of a line each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from input import InputError, paths


def must_be_text(classes: Iterable[str], folder: Path) -> None:
    """Checks the names of class folders in `folder`, in UTF-8 or what stands for other bytes.

    Raises:
        InputError: one is not UTF-8, or has a line break.
    """
    for name in classes:
        if "\n" in name or "\r" in name:
            raise InputError(
                f"{paths.shown(str(folder))}: the folder {name!r} has a line break in its name, "
                "which is the name of a class: rename it."
            )
        if paths.shown(name) != name:
            raise InputError(
                f"{paths.shown(str(folder))}: the name of the folder {paths.shown(name)!r} is the "
                "name of a class, and is not UTF-8: rename it, or all of them from their encoding, "
                "as with `convmv -r -f latin1 -t utf8 --notest`."
            )
