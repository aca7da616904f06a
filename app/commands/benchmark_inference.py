"""Measures predictions a second and their latency, by layout and batch."""

import dataclasses
import os
from pathlib import Path

from absl.flags import FlagValues

from app.cli import groups, rank, selection, workdir
from app.cli.flags import Integers, define, to_arguments
from app.config import Experiment, Layout
from app.errors import DONE, UsageError
from app.launch import launcher
from app.tools.inference import benchmark

SECTION = "Measure"
FLAGS = FlagValues()
groups.experiment(FLAGS)
groups.stages(FLAGS)
groups.ranks(FLAGS)
groups.cores(FLAGS)  # given, one layout is measured
groups.output(FLAGS, "The folder of the report. If not given, runs/inference_<experiment>/<time>.")
group = groups.group(FLAGS, "The layout")
define(Integers("1,8,32"), "batch_sizes", "1,8,32", "Numbers of items predicted at once.", **group)


def launch(flags: FlagValues, command: list[str]) -> int:
    """Measures one layout on NP processes if --threads is given, else one after the other."""
    if not flags["threads"].present:
        return run(flags)
    select(flags)
    return launcher.run(flags, command)


def run(flags: FlagValues) -> int:
    """Measures one layout as a rank of a job if --threads is given, else each in its own job."""
    experiment, layout = select(flags)
    folder = Path(flags.output or workdir.named(f"inference_{selection.reference(flags)}"))
    workdir.writable(folder, "--output")
    if flags["threads"].present:
        return measure(flags, experiment, layout, folder)
    cores = len(os.sched_getaffinity(0))
    stages = flags.stages if flags["stages"].present else 2
    return benchmark.main(to_arguments(flags, ("stages", "output")), cores, stages, folder)


def measure(flags: FlagValues, experiment: Experiment, layout: Layout, folder: Path) -> int:
    """Measures one layout as a rank of its job."""
    own = rank.hold_cores(flags.threads)
    topology, layout = rank.join(layout, exact=True, is_training=False)
    from app.tools.inference import cell
    from app.training import setup, trained

    data_dir = selection.data_dir(flags)
    if flags.workdir:
        run = trained.restore(experiment, layout, topology, Path(flags.workdir), data_dir)
        opened = run.setup
    else:
        of_one = dataclasses.replace(layout, processes=1)
        opened = setup.open_run(experiment, of_one, topology, data_dir)
    lanes = max(1, len(own) // layout.stages)
    measured = benchmark.Cell(topology.size, flags.threads, layout.stages)
    folder.mkdir(parents=True, exist_ok=True)
    cell.main(opened, topology, lanes, flags.batch_sizes, folder / measured.file)
    if topology.is_chief:
        rows = map(benchmark.ROW.format_map, measured.rows(folder))
        print("\n".join([benchmark.HEADING, *rows]))
    return DONE


def select(flags: FlagValues) -> tuple[Experiment, Layout]:
    """Returns what the flags describe: a run, or an experiment with its initial weights.

    Raises:
        UsageError: a folder that is no run.
    """
    if flags.workdir and selection.run_in_workdir(flags) is None:
        raise UsageError(
            f"--workdir={flags.workdir} is no run: give one, or --experiment for its initial "
            "weights."
        )
    return selection.checked(flags, 1)
