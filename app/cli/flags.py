"""The flags: their types, their bounds, and which command reads which."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Sequence

from absl import flags

from app import errors
from app.cli import home
from app.tools import chaos, rules
from app.tools.peers import cases

FLAGS = flags.FLAGS


class Bounded(flags.FloatParser):
    """The bounds of absl's own parser let NaN and, where only one is given, infinity pass."""

    def __init__(self, least: float, most: float | None = None) -> None:
        super().__init__(least, most)
        self.syntactic_help = self.syntactic_help.replace("a ", "a finite ", 1)

    def is_outside_bounds(self, value: float) -> bool:
        """See base class."""
        return not math.isfinite(value) or super().is_outside_bounds(value)


class Seconds(flags.FloatParser):
    """NaN is not at least 1."""

    syntactic_help = "a number of seconds, at least 1"

    def is_outside_bounds(self, value: float) -> bool:
        """See base class."""
        return not value >= 1


def _define_seconds(name: str, default: float, help: str) -> None:
    flags.DEFINE(Seconds(), name, default, help, serializer=flags.ArgumentSerializer())


def _define_number(
    name: str, default: float, help: str, least: float, most: float | None = None
) -> None:
    flags.DEFINE(Bounded(least, most), name, default, help, serializer=flags.ArgumentSerializer())


flags.DEFINE_string("experiment", None, "A name (see `list`), or module:function.")
flags.DEFINE_multi_string("set", [], "field=value of the experiment; repeatable.")
flags.DEFINE_string("workdir", None, "Where the run is kept; runs/<experiment>/<time>.")
flags.DEFINE_string(
    "data_dir", os.environ.get("TFDS_DATA_DIR") or home.data_dir(), "Prepared data sets."
)
flags.DEFINE_bool("exact", False, "The same weights bit for bit on any number of processes.")
flags.DEFINE_integer("stages", 1, "Of a process: the model is cut in as many.")
flags.DEFINE_integer("tensor", 1, "Devices a stage (or stage-server): layers are split over them.")
flags.DEFINE_enum("schedule", "1f1b", ["1f1b", "gpipe"], "Order of a stage's micro-batches.")
flags.DEFINE_integer("chunks", 1, "Runs of blocks a stage; above 1: interleaved 1f1b.")
flags.DEFINE_list("cut", [], "Blocks of each stage (or chunk), as 3,4,3; balanced if not given.")
flags.DEFINE_list("servers", [], "host:port of a stage server a stage, rank 0's first.")
flags.DEFINE_integer(
    "parameter_servers", 1, "Of update.kind=parameter_server, on one machine.", lower_bound=1
)
flags.DEFINE_integer(
    "port", 0, "Of stage-server; of serve, 8501 if not given.", lower_bound=0, upper_bound=65535
)
flags.DEFINE_bool(
    "trusted_network", False, "Whoever reaches this machine's ports may command the job."
)
flags.DEFINE_bool("elastic", False, "Processes may die, leave and join; the others go on.")
flags.DEFINE_string(
    "host_discovery_script", None, "Prints host:slots lines; an elastic job follows them."
)
flags.DEFINE_integer("commit_every", 10, "Steps between commits of an elastic job.", lower_bound=1)
flags.DEFINE_bool("recompute", False, "Keep a stage's input only; compute the rest again.")
flags.DEFINE_integer("checkpoint_every", 0, "Steps; 0: by the clock.", lower_bound=0)
_define_seconds("checkpoint_seconds", 600, "Between checkpoints by the clock.")
flags.DEFINE_integer("evaluate_every", 0, "Steps; 0: at the end only.", lower_bound=0)
flags.DEFINE_integer("keep", 3, "Checkpoints kept, beside the best.", lower_bound=1)
flags.DEFINE_integer("stop_at_step", 0, "Stop there, to be continued.", lower_bound=0)
flags.DEFINE_integer("log_every", 10, "Steps between lines of metrics.jsonl.", lower_bound=1)
flags.DEFINE_bool("log_examples", False, "Write the ids of every step's examples.")
flags.DEFINE_integer("compare_every", 50, "Steps between comparisons of replicas.", lower_bound=0)
flags.DEFINE_bool("repair", False, "Give replicas that differ the majority's state.")
flags.DEFINE_integer(
    "max_restarts",
    3,
    "In a row without a new checkpoint; 0: never.",
    lower_bound=0,
)
_define_seconds("hang_seconds", 300, "Without a sign of any rank: it hangs.")
_define_seconds("grace_seconds", 30, "To save and stop when told to.")
flags.DEFINE_integer("faults", 20, "That chaos deals in all.", lower_bound=1)
_define_seconds("between_seconds", 30, "Mean time from fault to fault.")
flags.DEFINE_list("kinds", ["kill"], f"Faults: {', '.join(chaos.KINDS)}, hosts (with --elastic).")
flags.DEFINE_integer("chaos_seed", 0, "Of the moments, kinds and victims.")

flags.DEFINE_list(
    "updates",
    ["sync", "async", "bounded:4", "local:8"],
    f"Rules to compare: {', '.join(rules.RULES)}.",
)
_define_number("slowdown", 1, "Of the last worker, as a straggler.", 1)
_define_number("link_mbit", 0, "Rate of the link that all processes share; 0: as it is.", 0)
flags.DEFINE_integer("evaluations", 10, "Of each run that is compared.", lower_bound=1)
_define_number("price", 0, "Of a device-hour.", 0)
_define_number("target", 0, "Accuracy whose time is looked for.", 0, 1)

flags.DEFINE_string("input", None, "To predict: a folder, a file, split:<name>, or - .")
flags.DEFINE_string("output", None, "Where predictions (.jsonl, .csv or -) or an export go.")
flags.DEFINE_enum(
    "format", None, ["txt", "csv", "tsv", "jsonl"], "Of --input; by its name if not given."
)
flags.DEFINE_string("field", None, "Column or key of --input that holds the text, or a path.")
flags.DEFINE_integer("top", 5, "Classes told of a prediction, likeliest first.", lower_bound=1)
flags.DEFINE_enum(
    "weights", "best", ["best", "trained", "average"],
    "Those of the last step or their moving average; best: the average, if one is kept.",
)  # fmt: skip
flags.DEFINE_integer(
    "batch_size", 0, "Items at once; 0: the micro-batch.", lower_bound=0, upper_bound=4096
)
flags.DEFINE_integer("threads", 0, "Cores of a process; 0: its share.", lower_bound=0)
flags.DEFINE_list(
    "variants", ["float32"], "To export: float32, bfloat16, float16, int8, litert, litert_int8."
)
flags.DEFINE_string("model", None, "To serve: a folder that export wrote.")
flags.DEFINE_string("name", None, "Of the served model; its own if not given.")
flags.DEFINE_string("host", "127.0.0.1", "Address to serve on; 0.0.0.0: every one.")
flags.DEFINE_integer("max_batch", 32, "Instances that serve computes at once.", lower_bound=1)
_define_number("batch_wait_ms", 2, "That a batch waits for more instances.", 0)
flags.DEFINE_integer("queue", 256, "Instances that may wait; more: 429.", lower_bound=1)
_define_number("max_body_mb", 16, "Of a request.", 0.001)
flags.DEFINE_integer("max_pixels", 50_000_000, "Of an image, by its header.", lower_bound=1)
flags.DEFINE_integer("max_text", 100_000, "Bytes of a text in UTF-8.", lower_bound=1)
_define_seconds("request_seconds", 30, "For a request to arrive.")
flags.DEFINE_list(
    "cors_origins", [], "Whose web pages may ask the server, as https://a.example; *: all."
)
flags.DEFINE_list("batch_sizes", ["1", "8", "32"], "That benchmark inference measures.")
flags.DEFINE_list("clients", ["8", "64"], "At once, that benchmark serving measures.")
_define_seconds("seconds", 5, "Of a round of benchmark serving, of a turn of benchmark peers.")
flags.DEFINE_list("cases", list(cases.NAMES), "That benchmark peers measures.")
flags.DEFINE_integer("pairs", 5, "Turns of each side in benchmark peers.", lower_bound=1)
flags.DEFINE_string("tensorflow", None, "The version of TensorFlow that upgrade tries.")

# Flags that only some commands read.
OF_TRAINING = (
    "elastic", "host_discovery_script", "commit_every", "checkpoint_every", "checkpoint_seconds",
    "evaluate_every", "keep", "stop_at_step", "log_every", "log_examples", "compare_every",
    "repair", "max_restarts", "hang_seconds",
)  # fmt: skip
OF_CHAOS = ("faults", "between_seconds", "kinds", "chaos_seed")
READERS: dict[str, tuple[str, ...]] = {flag: ("train", "chaos") for flag in OF_TRAINING}
READERS |= {flag: ("chaos",) for flag in OF_CHAOS} | {"port": ("stage-server", "serve")}
READERS |= {"parameter_servers": ("train",)}
OF_COMPARE = ("updates", "slowdown", "link_mbit", "evaluations", "price", "target")
READERS |= {flag: ("compare",) for flag in OF_COMPARE}
OF_ITEMS = ("input", "format", "field")
READERS |= {flag: ("predict", "benchmark serving") for flag in OF_ITEMS}
OF_SERVER = ("model", "name", "host", "max_batch", "batch_wait_ms", "queue", "max_body_mb",
             "request_seconds", "cors_origins")  # fmt: skip
READERS |= {flag: ("serve",) for flag in OF_SERVER}
OF_LOAD = ("model", "threads", "max_batch", "batch_wait_ms", "queue")  # of its servers
READERS |= {flag: ("serve", "benchmark serving") for flag in OF_LOAD}
MEASURES = ("benchmark inference", "benchmark cell")
PEERS = "benchmark peers"
READERS |= {
    "output": ("predict", "export", "benchmark serving", PEERS, *MEASURES),
    "weights": ("predict", "export"),
    "variants": ("export",),
    "batch_size": ("predict",),
    "threads": ("predict", "serve", "benchmark serving", "benchmark cell"),
    "top": ("predict",),
    "clients": ("benchmark serving",),
    "seconds": ("benchmark serving", PEERS),
    "cases": (PEERS,),
    "pairs": (PEERS,),
    "max_pixels": ("predict", "export", "serve"),
    "max_text": ("predict", "export", "serve"),
    "batch_sizes": MEASURES,
    "tensorflow": ("upgrade",),
}

# Commands that read no flag but these.
ONLY: dict[str, tuple[str, ...]] = {
    "serve": (*OF_SERVER, "port", "threads", "max_pixels", "max_text", "grace_seconds"),
    "benchmark serving": (*OF_LOAD, *OF_ITEMS, "output", "clients", "seconds"),
    PEERS: ("cases", "pairs", "seconds", "output"),
    "upgrade": ("tensorflow", "workdir"),
}


def parse(name: str, arguments: Sequence[str]) -> None:
    """Reads the flags of a command.

    Raises:
        UsageError: one that is unknown, empty, another command's or not of its type.
    """
    try:
        left = FLAGS([name, *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, FLAGS, n=1)
        hint = f" (nearest: --{near[0]})" if near else ""
        raise errors.UsageError(
            f"no flag --{error.flagname}{hint}: `./run.sh help` lists them."
        ) from None
    except flags.Error as error:
        raise errors.UsageError(_reason(str(error))) from None
    if left:
        raise errors.UsageError(f"{name} takes flags only, not {left[0]!r}.")
    for flag in FLAGS.get_flags_for_module("app.cli.flags"):
        readers = READERS.get(flag.name, (name,))
        if name in ONLY and flag.name not in ONLY[name] and name in readers:
            readers = ("the other commands",)
        if flag.present and flag.value in ("", []):
            raise errors.UsageError(f"--{flag.name}= is empty: give it a value, or leave it out.")
        if flag.present and name not in readers:
            raise errors.UsageError(
                f"--{flag.name} is a flag of {' and '.join(readers)}, which {name} does not read: "
                "leave it out."
            )


def _reason(told: str) -> str:
    """What absl says of a flag's value, with what it must be."""
    match = re.match(r"flag (--(\w+)=.*?): ", told, re.DOTALL)
    if not match:
        return f"{told.removeprefix('ERROR:: ')}: see `./run.sh help`."
    parser = FLAGS[match[2]].parser
    names = getattr(parser, "enum_values", ("true", "false"))
    return f"{match[1]} must be {parser.syntactic_help or ' or '.join(names)}."
