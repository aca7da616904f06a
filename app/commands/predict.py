"""Predicts --input with the newest checkpoint of --workdir."""

import os
import re
from pathlib import Path

from absl.flags import DEFINE_float, DEFINE_integer, FlagValues

from app.cli import groups, rank, selection, workdir
from app.config import Experiment, Layout
from app.errors import UsageError
from app.inference import standard
from app.inference.standard import STANDARD
from app.launch import launcher
from input.raw import Limits

SECTION = "Use a trained model"
FLAGS = FlagValues()
groups.experiment(FLAGS)
groups.weights(FLAGS)
groups.items(FLAGS, "What is predicted: a folder, a file, split:<name>, or - for standard input.")
groups.output(FLAGS, "Where predictions are written: a .jsonl or .csv, or - for standard output.")
group = groups.group(FLAGS, "Input and output")
DEFINE_integer("top", 5, "How many classes are written, likeliest first.", 1, **group)
group = groups.group(FLAGS, "Continuing texts")
DEFINE_integer("words", 32, "The most WordPieces that a language model adds to a text.", 1, **group)
DEFINE_float("temperature", 0.0, "How varied they are. 0: always the likeliest.", 0.0, **group)
DEFINE_integer("sample_seed", 0, "The seed of what is drawn at a temperature above 0.", 0, **group)
groups.stages(FLAGS)
groups.placement(FLAGS)
groups.ranks(FLAGS)
groups.cores(FLAGS)
groups.limits(FLAGS)
group = groups.group(FLAGS, "The layout")
DEFINE_integer("batch_size", 0, "Items predicted at once. 0: a micro-batch.", 0, 4096, **group)


def launch(flags: FlagValues, command: list[str]) -> int:
    """Predicts on NP processes, which standard input and output reach as files."""
    select(flags)
    with standard.as_files(*paths(flags), flags.format) as (source, output):
        command = [*command, f"--input={source}", f"--output={output}"]
        return launcher.run(flags, command, Path(f"{output}.partial"))


def run(flags: FlagValues) -> None:
    """Predicts as a rank of a job."""
    experiment, layout = select(flags)
    source, output = paths(flags)
    if rank.processes() > 1 and STANDARD in (source, output):
        raise UsageError(
            "horovodrun's ranks share no standard input or output: name files, or use ./run.sh "
            "predict."
        )
    own = rank.hold_cores(flags.threads)
    with standard.as_files(source, output, flags.format) as (source, output):
        topology, layout = rank.join(layout, exact=True, is_training=False)
        from app.inference import predict

        job = predict.Job(
            source=source,
            output=Path(output),
            form=flags.format,
            field=flags.field,
            top=flags.top,
            weights=flags.weights,
            batch=flags.batch_size or experiment.micro_batch,
            threads=len(own),
            limits=Limits(flags.max_pixels, flags.max_text),
            sampling=predict.Sampling(flags.words, flags.temperature, flags.sample_seed),
        )
        folder, data_dir = Path(flags.workdir), selection.data_dir(flags)
        predict.main(experiment, layout, topology, folder, data_dir, job)


def select(flags: FlagValues) -> tuple[Experiment, Layout]:
    """Returns what the flags describe: a run, and a layout to predict with it.

    Raises:
        UsageError: no run, no input, or an output that cannot be written.
    """
    selection.must_be_run(flags, "predict")
    source, output = paths(flags)
    hosts = os.environ.get("HOSTS")
    if hosts and STANDARD in (source, output):
        raise UsageError(
            f"HOSTS={hosts} do not share this machine's temporary files: name files of a shared "
            "folder in --input and --output, not - ."
        )
    if output != STANDARD and Path(output).suffix not in (".jsonl", ".csv"):
        raise UsageError(
            f"--output={output} must end in .jsonl or .csv, or be - for standard output."
        )
    if output != STANDARD:
        workdir.writable(Path(output).parent, "--output")
    if flags.format and (source.startswith("split:") or Path(source).is_dir()):
        raise UsageError(
            f"--format={flags.format} is of a file, but --input={source} is none: leave it out."
        )
    experiment, layout = selection.checked(flags, 1)
    selection.must_have_weights(flags, experiment)
    return experiment, layout


def paths(flags: FlagValues) -> tuple[str, str]:
    """Returns --input and --output, which is beside the run if it is not given.

    Raises:
        UsageError: no input.
    """
    source = flags.input
    if not source:
        raise UsageError(
            "predict needs --input: a folder of images, a .txt, .csv, .tsv or .jsonl, "
            "split:<name>, or - for standard input."
        )
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(source.removeprefix("split:")).stem)
    beside = Path(flags.workdir) / "predictions" / f"{name}.jsonl"
    return source, flags.output or (STANDARD if source == STANDARD else str(beside))
