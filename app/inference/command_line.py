"""What the flags of prediction and export describe; needs no TensorFlow."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from app import errors
from app.cli import workdir
from app.cli.command_line import must_be_run, reference, validated
from app.cli.flags import FLAGS
from app.config import Experiment, Layout
from app.inference.standard import STANDARD
from app.serving import versions
from app.serving.versions import ModelVersion

# Flags of a layout that only training steps have.
OF_STEPS = ("schedule", "chunks", "tensor", "recompute", "exact")
# Of an exported model (`variants.py`, `export.LITERT`).
VARIANTS = ("float32", "bfloat16", "float16", "int8", "litert", "litert_int8")


def to_predict() -> tuple[Experiment, Layout]:
    """What the flags describe: a run, and a layout to predict with it.

    Raises:
        UsageError: no run, no input, or a layout that prediction does not have.
    """
    must_be_run("predict")
    source, output = predicted()
    hosts = os.environ.get("HOSTS")
    if hosts and STANDARD in (source, output):
        raise errors.UsageError(
            f"HOSTS={hosts} do not share this machine's temporary files: name files of a shared "
            "folder in --input and --output, not - ."
        )
    if output != STANDARD and Path(output).suffix not in (".jsonl", ".csv"):
        raise errors.UsageError(
            f"--output={output} must end in .jsonl or .csv, or be - for standard output."
        )
    if output != STANDARD:
        workdir.writable(Path(output).parent, "--output")
    if FLAGS.format and (source.startswith("split:") or Path(source).is_dir()):
        raise errors.UsageError(
            f"--format={FLAGS.format} is of a file, but --input={source} is none: leave it out."
        )
    _must_not_be(OF_STEPS, "of training; prediction is exact, and has --stages and --cut")
    experiment, layout = validated(1)
    _must_have_weights(experiment)
    return experiment, layout


def _must_not_be(names: Sequence[str], why: str) -> None:
    for name in names:
        if FLAGS[name].present:
            raise errors.UsageError(f"--{name} is {why}: leave it out.")


def predicted() -> tuple[str, str]:
    """--input and --output, which is beside the run if it is not given.

    Raises:
        UsageError: no input.
    """
    source = FLAGS.input
    if not source:
        raise errors.UsageError(
            "predict needs --input: a folder of images, a .txt, .csv, .tsv or .jsonl, "
            "split:<name>, or - for standard input."
        )
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(source.removeprefix("split:")).stem)
    beside = Path(FLAGS.workdir) / "predictions" / f"{name}.jsonl"
    return source, FLAGS.output or (STANDARD if source == STANDARD else str(beside))


def to_measure() -> tuple[Experiment, Layout, list[int]]:
    """What the flags describe for `benchmark inference`, and the sizes of batches.

    Raises:
        UsageError: sizes that are none, a folder that is no run, or flags of training steps.
    """
    sizes = _counts("batch_sizes", "1,8,32")
    _must_not_be((*OF_STEPS, "cut", "servers"), "not of what is measured here")
    if FLAGS.workdir and workdir.read(Path(FLAGS.workdir)) is None:
        raise errors.UsageError(
            f"--workdir={FLAGS.workdir} is no run: give one, or --experiment for its initial "
            "weights."
        )
    return *validated(1), sizes


def _counts(name: str, example: str) -> list[int]:
    """A flag's list of numbers."""
    given: list[str] = FLAGS[name].value or []
    try:
        found = [int(text) for text in given]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise errors.UsageError(
            f"--{name}={','.join(given)} must be numbers of at least 1, as {example}."
        )
    return found


def to_load() -> tuple[ModelVersion, list[int]]:
    """The model of `benchmark serving`, and how many clients ask it.

    Raises:
        UsageError: no model, nothing to ask about, or clients that are none.
    """
    counts = _counts("clients", "8,64")
    if not FLAGS.model or not FLAGS.input:
        raise errors.UsageError(
            "benchmark serving needs --model=<folder that export wrote>, and --input: a folder of "
            "images, or a .txt, .csv, .tsv or .jsonl, that clients ask about."
        )
    if FLAGS.max_batch < 2:
        raise errors.UsageError(
            f"--max_batch={FLAGS.max_batch} makes no batches, which are compared with requests one "
            "by one: give 2 or more."
        )
    found = versions.find(Path(FLAGS.model))
    if not found.about.kind:
        raise errors.UsageError(
            f"{found.folder} does not say whether it is of images or texts: give a model that "
            "`./run.sh export` wrote."
        )
    return found, counts


def to_export() -> tuple[Experiment, Path]:
    """What the flags describe: a run, and where it is exported to.

    Raises:
        UsageError: no run, or a variant that does not exist.
    """
    must_be_run("export")
    wrong = [name for name in FLAGS.variants if name not in VARIANTS]
    if wrong or not FLAGS.variants or len(set(FLAGS.variants)) < len(FLAGS.variants):
        raise errors.UsageError(
            f"--variants={','.join(FLAGS.variants)} must be of {', '.join(VARIANTS)}, each once."
        )
    output = Path(FLAGS.output or Path("exports") / reference().rpartition(":")[2])
    workdir.writable(output, "--output")
    experiment, _ = validated(1)
    _must_have_weights(experiment)
    return experiment, output


def _must_have_weights(experiment: Experiment) -> None:
    if FLAGS.weights == "average" and not experiment.optimization.ema_decay:
        raise errors.UsageError(
            "--weights=average needs a moving average of the weights, which this run does not keep "
            "(optimization.ema_decay is 0): leave it out."
        )
