"""Evaluates the newest checkpoint of --workdir."""

import json
from pathlib import Path

from absl.flags import FlagValues

from app.cli import groups, rank, selection
from app.config import Experiment, Layout

SECTION = "Use a trained model"
FLAGS = FlagValues()
groups.ranked(FLAGS)


def run(flags: FlagValues) -> None:
    """Evaluates as a rank of a job; prints the metrics."""
    experiment, layout = select(flags, rank.processes())
    topology, layout = rank.join(layout)
    from app.training import trained

    folder, data_dir = Path(flags.workdir), selection.data_dir(flags)
    metrics = trained.evaluate(experiment, layout, topology, folder, data_dir)
    if metrics:
        print(json.dumps(metrics, indent=1))


def select(flags: FlagValues, processes: int) -> tuple[Experiment, Layout]:
    """Returns what the flags describe; any number of processes can evaluate it."""
    selection.must_be_run(flags, "evaluate")
    return selection.checked(flags, 1)
