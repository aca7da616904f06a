"""Draws when each stage of a pipeline ran which micro-batch."""

from pathlib import Path

from absl.flags import FlagValues

from app.cli import groups, rank, selection, workdir
from app.config import Experiment, Layout
from app.errors import UsageError

SECTION = "Measure"
FLAGS = FlagValues()
groups.ranked(FLAGS)


def run(flags: FlagValues) -> None:
    """Draws a step as a rank of a job."""
    experiment, layout = select(flags, rank.processes())
    topology, layout = rank.join(layout)
    from app.tools import trace

    name = f"trace_{selection.reference(flags)}"
    folder = rank.output_folder(flags.workdir, name, topology.is_chief)
    trace.main(experiment, layout, topology, selection.data_dir(flags), folder)


def select(flags: FlagValues, processes: int) -> tuple[Experiment, Layout]:
    """Returns what the flags describe: a pipeline.

    Raises:
        UsageError: a model of one stage, or a folder that cannot be written.
    """
    experiment, layout = selection.synchronous(flags, processes, "trace")
    if layout.stages < 2:
        raise UsageError(f"trace shows a pipeline: give --stages, not {layout.stages}.")
    workdir.writable(Path(flags.workdir or workdir.named(selection.reference(flags))))
    return experiment, layout
