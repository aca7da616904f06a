"""Trains a few steps on many layouts, and compares each with the serial run."""

from __future__ import annotations

from absl.flags import FlagValues

from app.cli import groups, rank, selection
from app.launch import launcher

SECTION = "Check"
FLAGS = FlagValues()
groups.experiment(FLAGS)
groups.stages(FLAGS)
groups.steps(FLAGS)
groups.ranks(FLAGS)


def launch(flags: FlagValues, command: list[str]) -> int:
    """Compares layouts of up to NP processes."""
    selection.synchronous(flags, launcher.processes(), "verify")
    return launcher.run(flags, command)


def run(flags: FlagValues) -> None:
    """Compares layouts as a rank of a job; the matrix has its own schedules, chunks and cuts."""
    experiment, layout = selection.synchronous(flags, rank.processes(), "verify")
    where, layout = rank.join(layout)
    from app.tools import verify

    verify.main(experiment, layout, where, selection.data_dir(flags))
