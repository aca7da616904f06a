"""Flags that several commands share: a command takes the groups that it reads."""

from typing import Any

from absl.flags import (
    DEFINE_bool,
    DEFINE_enum,
    DEFINE_integer,
    DEFINE_list,
    DEFINE_multi_string,
    DEFINE_string,
    FlagValues,
)

from app.cli import home
from app.cli.flags import SECONDS, Integers, Number, define


def group(values: FlagValues, title: str) -> dict[str, Any]:
    """Returns what absl's DEFINE functions take to put a flag into a group of `values`."""
    return {"flag_values": values, "module_name": title}


def experiment(values: FlagValues) -> None:
    """Defines what is trained, and where the run is kept."""
    g = group(values, "The experiment and the run")
    DEFINE_string(
        "experiment", None,
        "The experiment: a name that `./run.sh list` shows, module:function or file.py:function. "
        "A run in --workdir remembers its own.", **g,
    )  # fmt: skip
    DEFINE_multi_string("set", [], "A field=value of the experiment", **g)
    DEFINE_string(
        "workdir", None, "The folder of the run. If not given, runs/<experiment>/<time>.", **g
    )
    DEFINE_string("data_dir", home.data_dir(), "The folder of prepared data sets.", **g)


def stages(values: FlagValues) -> None:
    """Defines how many stages a process cuts the model into."""
    g = group(values, "The layout")
    DEFINE_integer("stages", 1, "The number of stages that each process cuts the model into.", **g)


def placement(values: FlagValues) -> None:
    """Defines which blocks a stage has, and on which machine."""
    g = group(values, "The layout")
    define(
        Integers("3,4,3"), "cut", "", "The number of blocks of each stage (or chunk). If not "
        "given, stages are balanced by measured time.", **g,
    )  # fmt: skip
    DEFINE_list(
        "servers", [], "The host:port of a stage server for each stage, rank 0's first.", **g
    )


def steps(values: FlagValues) -> None:
    """Defines how a training step is laid out, beside its stages."""
    g = group(values, "The layout")
    DEFINE_bool("exact", False, "Train the same weights, bit for bit, on every layout.", **g)
    DEFINE_integer(
        "tensor", 1, "The number of devices of each stage. Layers are split over them.", **g
    )
    DEFINE_enum("schedule", "1f1b", ["1f1b", "gpipe"], "The order of a stage's micro-batches.", **g)
    DEFINE_integer(
        "chunks", 1, "The number of runs of blocks of each stage. Above 1, 1f1b is interleaved.",
        **g,
    )  # fmt: skip
    DEFINE_bool(
        "recompute", False,
        "Keep only the input of each stage for the backward pass, and compute the rest again.", **g,
    )  # fmt: skip


def network(values: FlagValues) -> None:
    """Defines whether others may reach the ports of a job."""
    g = group(values, "Processes and machines")
    DEFINE_bool(
        "trusted_network", False,
        "Trust the network: whoever reaches the ports of this job can run code as you.", **g,
    )  # fmt: skip


def ranks(values: FlagValues) -> None:
    """Defines how the ranks of a job are started and stopped."""
    network(values)
    g = group(values, "Processes and machines")
    about = "How long a process may take to save and stop after SIGTERM."
    define(SECONDS, "grace_seconds", 30, about, **g)


def ranked(values: FlagValues) -> None:
    """Defines what a command that runs on any layout reads; NP gives the number of processes."""
    experiment(values)
    stages(values)
    placement(values)
    steps(values)
    ranks(values)


def training(values: FlagValues) -> None:
    """Defines how a training run is watched, saved and started again."""
    g = group(values, "Processes and machines")
    DEFINE_bool("elastic", False, "Let processes die, leave and join while the others go on.", **g)
    DEFINE_string(
        "host_discovery_script", None,
        "A program that prints host:slots lines, which an elastic job follows.", **g,
    )  # fmt: skip
    DEFINE_integer("commit_every", 10, "Steps between commits to memory of an elastic job.", 1, **g)
    DEFINE_integer(
        "max_restarts", 3,
        "How often a broken job is started again without a new checkpoint. 0: never.", 0, **g,
    )  # fmt: skip
    about = "How long a job may show no sign of life before it is ended."
    define(SECONDS, "hang_seconds", 300, about, **g)
    g = group(values, "Checkpoints and evaluation")
    DEFINE_integer(
        "checkpoint_every", 0, "Steps between checkpoints. 0: see --checkpoint_seconds.", 0, **g
    )
    about = "Seconds between checkpoints, if --checkpoint_every is 0."
    define(SECONDS, "checkpoint_seconds", 600, about, **g)
    DEFINE_integer("keep", 3, "The number of checkpoints that are kept beside the best.", 1, **g)
    DEFINE_integer(
        "evaluate_every", 0, "Steps between evaluations. 0: evaluate at the end only.", 0, **g
    )
    DEFINE_integer(
        "stop_at_step", 0, "Save and stop at this step, to be continued. 0: train to the end.", 0,
        **g,
    )  # fmt: skip
    g = group(values, "What is logged and compared")
    DEFINE_integer("log_every", 10, "Steps between lines of metrics.jsonl.", 1, **g)
    DEFINE_bool("log_examples", False, "Write the ids of the examples of every step.", **g)
    DEFINE_integer(
        "compare_every", 50, "Steps between comparisons of the replicas. 0: before saving only.", 0,
        **g,
    )  # fmt: skip
    DEFINE_bool("repair", False, "Give replicas that differ the state of the majority.", **g)


def items(values: FlagValues, what: str) -> None:
    """Defines what a model is given, beside a data set."""
    g = group(values, "Input and output")
    DEFINE_string("input", None, what, **g)
    DEFINE_enum(
        "format", None, ["txt", "csv", "tsv", "jsonl"],
        "The format of --input. If not given, its name says it.", **g,
    )  # fmt: skip
    DEFINE_string(
        "field", None, "The column or key of --input that holds the text, or an image's path.", **g
    )


def output(values: FlagValues, what: str) -> None:
    """Defines where a command writes."""
    DEFINE_string("output", None, what, **group(values, "Input and output"))


def weights(values: FlagValues) -> None:
    """Defines which of a run's weights are taken."""
    DEFINE_enum(
        "weights", "best", ["best", "trained", "average"],
        "Which weights are taken: those of the last step, their moving average, or the average if "
        "the run keeps one (best).", **group(values, "The experiment and the run"),
    )  # fmt: skip


def limits(values: FlagValues) -> None:
    """Defines how large an image or a text may be."""
    g = group(values, "Limits")
    DEFINE_integer(
        "max_pixels", 50_000_000, "The most pixels that the header of an image may announce.", 1,
        **g,
    )  # fmt: skip
    DEFINE_integer("max_text", 100_000, "The most bytes that a text may have in UTF-8.", 1, **g)


def cores(values: FlagValues) -> None:
    """Defines how many cores a process computes on."""
    g = group(values, "Processes and machines")
    DEFINE_integer(
        "threads", 0, "The number of cores of a process. 0: its share of the machine's.", 0, **g
    )


def server(values: FlagValues) -> None:
    """Defines the exported model that a server loads, and how it makes batches."""
    g = group(values, "The server")
    DEFINE_string("model", None, "The folder that `export` wrote.", **g)
    DEFINE_integer("max_batch", 32, "The most instances that the server computes at once.", 1, **g)
    about = "Milliseconds that a batch waits for more instances."
    define(Number(0), "batch_wait_ms", 2, about, **g)
    DEFINE_integer(
        "queue", 256, "The most instances that may wait. More are answered with 429.", 1, **g
    )
