"""Measures steps, input, scaling, all-reduce and stages on this machine."""

import dataclasses

from absl.flags import FlagValues

from app.cli import groups, rank, selection, validation
from app.config import MEASURED_MICRO_BATCHES, Experiment, Layout
from app.errors import UsageError

SECTION = "Measure"
FLAGS = FlagValues()
groups.ranked(FLAGS)


def run(flags: FlagValues) -> None:
    """Measures as a rank of a job."""
    experiment, layout = select(flags, rank.processes())
    topology, layout = rank.join(layout)
    from app.tools import benchmark

    benchmark.main(experiment, layout, topology, selection.data_dir(flags))


def select(flags: FlagValues, processes: int) -> tuple[Experiment, Layout]:
    """Returns what the flags describe, with as many micro-batches as are measured.

    Raises:
        UsageError: what is not measured.
    """
    if flags.exact:
        raise UsageError("benchmark measures the fast way: leave --exact out.")
    experiment = selection.experiment(flags, "resnet50_synthetic")
    layout = dataclasses.replace(selection.layout(flags, processes), exact=False)
    selection.must_be_synchronous(experiment, "benchmark")
    each = MEASURED_MICRO_BATCHES if layout.devices > 1 else 1
    experiment = dataclasses.replace(
        experiment, global_batch=experiment.micro_batch * each * processes, steps=1, epochs=None
    )
    validation.validate(experiment, layout)
    return experiment, layout
