"""Opens a run's data, the same on every rank, and compares them with what the run was trained on.

Weights know a class only by its number. Its name comes from data, which can change: a folder is
renamed, a file gets another label. A run keeps the *meaning* of its data (classes, vocabulary,
pixels) in config.json and in every checkpoint, and is continued, evaluated, exported and used to
predict with the same meaning only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app import config
from app.cli import validation
from app.config import Experiment
from app.errors import CheckpointError
from app.recovery import heartbeat
from app.training import agreement
from input import packages, paths
from input.batches import DataSet
from models.keras_model import WEIGHT_FILES

MAX_NAMES = 20  # of classes in a message


def open_data(experiment: Experiment, data_dir: str) -> DataSet:
    """Opens the data on every rank, after checking that all have the same experiment.

    Raises:
        UsageError: model or objective do not fit the data, or another rank has other data.
    """
    agreement.require_same("experiment", config.as_dict(experiment))

    def open_ready() -> DataSet:
        data = experiment.data.open(data_dir)
        for _ in data.ready():
            heartbeat.beat("opening")
        return data

    data = agreement.run_on_all_ranks(open_ready)
    agreement.require_same("data", {**facts(data), "meaning": meaning(data)})
    validation.validate_limits(experiment, data.limits)
    agreement.run_on_all_ranks(lambda: experiment.objective.check(data))
    return data


def facts(data: DataSet) -> dict[str, Any]:
    """Returns what the order of examples, and so the result, depends on."""
    return {
        "training examples": data.num_train,
        "evaluation examples": data.num_evaluation,
        "classes": data.num_classes,
        "digest": data.digest,
    }


def pretrained_weights(experiment: Experiment, data: DataSet, data_dir: str) -> Path | None:
    """Returns the folder or file of the weights that training starts from; None: it starts anew.

    Raises:
        InputError: there is no such folder, or its weights were trained with other words.
    """
    name = getattr(experiment.model, "init_from", None)
    if not name:
        return None
    if name.endswith(WEIGHT_FILES):
        return paths.expand_user(name)
    folder = packages.pretrained(name, data_dir)
    if hasattr(data, "must_suit"):
        data.must_suit(folder)
    return folder


def meaning(data: DataSet) -> dict[str, Any]:
    """Returns what turns a model's numbers into answers: class names, vocabulary, pixels."""
    found = {"classes": list(getattr(data, "classes", ())), **getattr(data, "meaning", {})}
    return {name: value for name, value in found.items() if value}


def require_same_meaning(ours: Mapping[str, Any], theirs: Mapping[str, Any], kept: Path) -> None:
    """Compares the meaning of data with that of a run.

    Args:
        ours: of the data as they are now.
        theirs: of the run.
        kept: where the run's is written.

    Raises:
        CheckpointError: they differ; the message shows both.
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
    """Formats a value; of a long list, only the places where it differs from the other."""
    if not isinstance(a, list) or not isinstance(b, Sequence):
        return str(a)
    places = list(range(len(a)))
    if len(a) > MAX_NAMES:
        places = [i for i in places if i >= len(b) or a[i] != b[i]][:MAX_NAMES]
    names = ", ".join(f"{i} {a[i]!r}" for i in places)
    return f"{len(a)} ({names}{', ...' if len(places) < len(a) else ''})"
