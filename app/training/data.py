"""What turns a model's numbers into answers, and belongs to its run: classes, vocabulary, pixels.

Weights know a class only by its number. Its name is taken from data, which can change: a folder
is renamed, a file gets another label. A run keeps what it was trained with, in config.json and in
every checkpoint, and goes on, is evaluated, predicts and is exported with the same only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.errors import CheckpointError
from input.batches import DataSet

MOST = 20  # names of classes in a message


def of(data: DataSet) -> dict[str, Any]:
    """What data say of their examples, as JSON has it."""
    found = {"classes": list(getattr(data, "classes", ())), **getattr(data, "meaning", {})}
    return {name: value for name, value in found.items() if value}


def must_agree(ours: Mapping[str, Any], theirs: Mapping[str, Any], kept: Path) -> None:
    """Compares data with what a run was trained on.

    Args:
        ours: of the data as they are now.
        theirs: of the run.
        kept: where that is written.

    Raises:
        CheckpointError: shows both.
    """
    lines = []
    for name in sorted(ours.keys() & theirs.keys()):
        a, b = ours[name], theirs[name]
        if a != b:
            now, then = _shown(a, b), _shown(b, a)
            lines.append(f"{name}: {then} when it was trained, {now} in the data now")
    if lines:
        raise CheckpointError(
            f"{kept} was trained on data that meant something else: {'; '.join(lines)}. Give the "
            "data as they were, or train on them as they are in another --workdir."
        )


def _shown(a: Any, b: Any) -> str:
    """A value; of a long list, where it differs from the other."""
    if not isinstance(a, list) or not isinstance(b, Sequence):
        return str(a)
    places = list(range(len(a)))
    if len(a) > MOST:
        places = [i for i in places if i >= len(b) or a[i] != b[i]][:MOST]
    names = ", ".join(f"{i} {a[i]!r}" for i in places)
    return f"{len(a)} ({names}{', ...' if len(places) < len(a) else ''})"
