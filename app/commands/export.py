"""Exports the newest checkpoint of --workdir as a SavedModel that stands by itself."""

import shlex
import sys
from pathlib import Path

from absl.flags import DEFINE_list, FlagValues

from app.cli import groups, rank, selection, workdir
from app.config import Experiment, Layout
from app.errors import UsageError
from input.raw import Limits

SECTION = "Use a trained model"
VARIANTS = ("float32", "bfloat16", "float16", "int8", "litert", "litert_int8")
FLAGS = FlagValues()
groups.experiment(FLAGS)
groups.weights(FLAGS)
groups.output(FLAGS, "The folder to export to. If not given, exports/<experiment>.")
DEFINE_list(
    "variants", ["float32"], f"The variants to export, of {', '.join(VARIANTS)}.",
    **groups.group(FLAGS, "Input and output"),
)  # fmt: skip
groups.limits(FLAGS)


def run(flags: FlagValues) -> None:
    """Restores the run, and writes every variant."""
    experiment, output = check(flags)
    topology, layout = rank.join(Layout(), is_training=False)
    from app.inference import export
    from app.training import trained

    folder, data_dir = Path(flags.workdir), selection.data_dir(flags)
    run = trained.restore(experiment, layout, topology, folder, data_dir)
    limits = Limits(flags.max_pixels, flags.max_text)
    command = shlex.join(["./run.sh", *sys.argv[sys.argv.index("export") :]])
    export.main(experiment, run, output, flags.weights, flags.variants, limits, command)


def check(flags: FlagValues) -> tuple[Experiment, Path]:
    """Returns what the flags describe: a run, and where it is exported to.

    Raises:
        UsageError: no run, or a variant that does not exist.
    """
    selection.must_be_run(flags, "export")
    given = flags.variants
    if not given or set(given) - set(VARIANTS) or len(set(given)) < len(given):
        raise UsageError(
            f"--variants={','.join(given)} must be of {', '.join(VARIANTS)}, each once."
        )
    output = Path(flags.output or Path("exports") / selection.reference(flags).rpartition(":")[2])
    workdir.writable(output, "--output")
    experiment, _ = selection.checked(flags, 1)
    selection.must_have_weights(flags, experiment)
    return experiment, output
