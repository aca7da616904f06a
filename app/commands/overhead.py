"""Measures what watching, comparing and saving cost when nothing breaks."""

from __future__ import annotations

from absl.flags import FlagValues

from app.cli import groups, rank, selection
from app.launch import launcher

SECTION = "Measure"
FLAGS = FlagValues()
groups.ranked(FLAGS)


def launch(flags: FlagValues, command: list[str]) -> int:
    """Measures on NP processes."""
    selection.synchronous(flags, launcher.processes(), "overhead")
    return launcher.run(flags, command)


def run(flags: FlagValues) -> None:
    """Measures as a rank of a job."""
    experiment, layout = selection.synchronous(flags, rank.processes(), "overhead")
    topology, layout = rank.join(layout)
    from app.tools import overhead

    name = f"overhead_{selection.reference(flags)}"
    folder = rank.output_folder(flags.workdir, name, topology.is_chief)
    overhead.main(experiment, layout, topology, selection.data_dir(flags), folder)
