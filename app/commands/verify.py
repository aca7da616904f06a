"""Trains a few steps on many layouts, and compares each with the serial run."""

from absl.flags import FlagValues

from app.cli import groups, rank, selection
from app.config import Experiment, Layout

SECTION = "Check"
FLAGS = FlagValues()
groups.experiment(FLAGS)
groups.stages(FLAGS)
groups.steps(FLAGS)
groups.ranks(FLAGS)


def run(flags: FlagValues) -> None:
    """Compares layouts as a rank of a job; the matrix has its own schedules, chunks and cuts."""
    experiment, layout = select(flags, rank.processes())
    topology, layout = rank.join(layout)
    from app.tools import verify

    verify.main(experiment, layout, topology, selection.data_dir(flags))


def select(flags: FlagValues, processes: int) -> tuple[Experiment, Layout]:
    """Returns what the flags describe."""
    return selection.synchronous(flags, processes, "verify")
