"""Measures what watching, comparing and saving cost when nothing breaks."""

from absl.flags import FlagValues

from app.cli import groups, rank, selection
from app.config import Experiment, Layout

SECTION = "Measure"
FLAGS = FlagValues()
groups.ranked(FLAGS)


def run(flags: FlagValues) -> None:
    """Measures as a rank of a job."""
    experiment, layout = select(flags, rank.processes())
    topology, layout = rank.join(layout)
    from app.tools import overhead

    name = f"overhead_{selection.reference(flags)}"
    folder = rank.output_folder(flags.workdir, name, topology.is_chief)
    overhead.main(experiment, layout, topology, selection.data_dir(flags), folder)


def select(flags: FlagValues, processes: int) -> tuple[Experiment, Layout]:
    """Returns what the flags describe."""
    return selection.synchronous(flags, processes, "overhead")
