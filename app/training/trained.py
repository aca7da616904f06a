"""A run's newest checkpoint, opened to be used: evaluated, predicted with, exported."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from app import config
from app.config import Experiment, Layout
from app.errors import CheckpointError, UsageError
from app.parallel.topology import Topology
from app.recovery import manifest
from app.training import data as meaning
from app.training import setup as opening
from app.training.checkpoint import Checkpoints
from app.training.evaluation import Evaluator
from app.training.setup import Opened
from app.training.trainer import evaluate_weights
from input.batches import DataSet
from input.raw import FIELDS


class Trained(NamedTuple):
    """What training has left.

    Attributes:
        opened: data, and the state after `step` steps.
        folder: of the run.
    """

    opened: Opened
    step: int
    folder: Path

    def manifest(self) -> dict[str, Any]:
        """Of the checkpoint: metrics, weights_sha256, versions."""
        return manifest.read(manifest.folder_of(self.folder / "checkpoints", self.step))

    @contextlib.contextmanager
    def weights(self, which: str) -> Iterator[str]:
        """Puts `trained`, `average` or the `best` weights in their place; yields which it is."""
        state = self.opened.state
        if which == "trained" or not state.has_average:
            yield "trained"
        else:
            with state.averaged():
                yield "average"


def must_be_servable(data: DataSet) -> None:
    """Checks that the data say what a client has of an example.

    Raises:
        UsageError: they do not.
    """
    names = len(getattr(data, "classes", ()))
    if getattr(data, "kind", "") not in FIELDS or names != data.num_classes:
        raise UsageError(
            f"{type(data).__name__} must say what a client has of an example: give it `kind` (one "
            f"of {', '.join(FIELDS)}), `preprocess` and the names of its {data.num_classes} "
            f"`classes`, not {names} (input/batches.py)."
        )


def restore(
    experiment: Experiment, layout: Layout, where: Topology, folder: Path, data_dir: str
) -> Trained:
    """Opens the data, builds the model and fills it, on every rank.

    Raises:
        CheckpointError: there is none, or it cannot be restored.
    """
    alone = dataclasses.replace(layout, processes=1)  # no step is taken: any number will do
    opened = opening.open_run(experiment, alone, where, data_dir)
    about = {"experiment": config.as_dict(experiment), "meaning": meaning.of(opened.data)}
    checkpoints = Checkpoints(folder / "checkpoints", opened.state, where, 1, about)
    step = checkpoints.restore()
    for passed, damage in checkpoints.damaged.items():
        print(f"warning: {passed} {damage}; step {step} is used", file=sys.stderr)
    for line in checkpoints.changes:
        print(f"warning: {line}", file=sys.stderr)
    if not step:
        error = CheckpointError(f"{folder} has no checkpoint yet: train it first.")
        raise error.on_every_rank(speaker=where.is_chief)
    return Trained(opened, step, folder)


def evaluate(
    experiment: Experiment, layout: Layout, where: Topology, folder: Path, data_dir: str
) -> dict[str, Any] | None:
    """Evaluates the newest checkpoint of a run; returns its metrics on rank 0.

    Raises:
        CheckpointError: there is none, or it cannot be restored.
    """
    (_, data, state, *_), step, _ = restore(experiment, layout, where, folder, data_dir)
    metrics = evaluate_weights(Evaluator(state, data, experiment.micro_batch, where), state)
    return {"step": step, **(metrics or {})} if where.is_chief else None
