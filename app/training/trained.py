"""Restores a run's newest checkpoint to evaluate it, predict with it or export it."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from app import config
from app.config import Experiment, Layout
from app.errors import CheckpointError
from app.parallel.topology import Topology
from app.recovery import manifest
from app.training import data as run_data
from app.training.checkpoint import Checkpoints
from app.training.evaluation import Evaluator
from app.training.setup import Setup, open_run


class Trained(NamedTuple):
    """The state of a run after `step` steps, from its newest checkpoint.

    Attributes:
        setup: data and state.
        folder: of the run.
    """

    setup: Setup
    step: int
    folder: Path

    def manifest(self) -> dict[str, Any]:
        """Returns the checkpoint's manifest: metrics, weights_sha256, versions."""
        return manifest.read(manifest.folder_of(self.folder / "checkpoints", self.step))

    @contextlib.contextmanager
    def weights(self, which: str) -> Iterator[str]:
        """Puts the `trained`, `average` or `best` weights into the state; yields which they are."""
        state = self.setup.state
        if which == "trained" or not state.has_average:
            yield "trained"
        else:
            with state.averaged():
                yield "average"


def restore(
    experiment: Experiment, layout: Layout, topology: Topology, folder: Path, data_dir: str
) -> Trained:
    """Opens the data, builds the model and restores its weights, on every rank.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be restored.
    """
    single = dataclasses.replace(layout, processes=1)  # no step is taken: any number will do
    setup = open_run(experiment, single, topology, data_dir)
    about = {"experiment": config.as_dict(experiment), "meaning": run_data.meaning(setup.data)}
    checkpoints = Checkpoints(folder / "checkpoints", setup.state, topology, 1, about)
    step = checkpoints.restore()
    for passed, damage in checkpoints.damaged.items():
        print(f"warning: {passed} {damage}; step {step} is used", file=sys.stderr)
    for line in checkpoints.changes:
        print(f"warning: {line}", file=sys.stderr)
    if not step:
        error = CheckpointError(f"{folder} has no checkpoint yet: train it first.")
        raise error.on_every_rank(speaker=topology.is_chief)
    return Trained(setup, step, folder)


def evaluate(
    experiment: Experiment, layout: Layout, topology: Topology, folder: Path, data_dir: str
) -> dict[str, Any] | None:
    """Evaluates the newest checkpoint of a run; returns its metrics on rank 0.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be restored.
    """
    (_, data, state, *_), step, _ = restore(experiment, layout, topology, folder, data_dir)
    metrics = Evaluator(experiment, state, data, topology).evaluate()
    return {"step": step, **(metrics or {})} if topology.is_chief else None
