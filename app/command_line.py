"""Flags, and the experiment and layout they describe; needs no TensorFlow."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from absl import flags

from app import config, errors, experiments, workdir
from app.config import Experiment, Layout

FLAGS = flags.FLAGS
flags.DEFINE_string("experiment", None, "A name (see `list`), or module:function.")
flags.DEFINE_multi_string("set", [], "field=value of the experiment; repeatable.")
flags.DEFINE_string("workdir", None, "Where the run is kept; runs/<experiment>/<time>.")
flags.DEFINE_string(
    "data_dir", os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"), "Prepared data sets."
)
flags.DEFINE_bool("exact", False, "The same weights bit for bit on any number of processes.")
flags.DEFINE_integer("stages", 1, "Of a process: the model is cut in as many.")
flags.DEFINE_integer("tensor", 1, "Devices a stage (or stage-server): layers are split over them.")
flags.DEFINE_enum("schedule", "1f1b", ["1f1b", "gpipe"], "Order of a stage's micro-batches.")
flags.DEFINE_integer("chunks", 1, "Runs of blocks a stage; above 1: interleaved 1f1b.")
flags.DEFINE_list("cut", [], "Blocks of each stage (or chunk), as 3,4,3; balanced if not given.")
flags.DEFINE_list("servers", [], "host:port of a stage server a stage, rank 0's first.")
flags.DEFINE_integer("port", 0, "Of stage-server.", lower_bound=0, upper_bound=65535)
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
flags.DEFINE_float("checkpoint_seconds", 600, "Between checkpoints by the clock.", lower_bound=1)
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
flags.DEFINE_float("hang_seconds", 300, "Without a sign of any rank: it hangs.", lower_bound=1)
flags.DEFINE_float("grace_seconds", 30, "To save and stop when told to.", lower_bound=1)
flags.DEFINE_integer("faults", 20, "That chaos deals in all.", lower_bound=1)
flags.DEFINE_float("between_seconds", 30, "Mean time from fault to fault.", lower_bound=0.1)
flags.DEFINE_list("kinds", ["kill"], "Of chaos: kill, stop, damage, hosts (with --elastic).")
flags.DEFINE_integer("chaos_seed", 0, "Of the moments, kinds and victims.")
OF_CHAOS = ("faults", "between_seconds", "kinds", "chaos_seed", "workdir")


def data_dir() -> str:
    """Where prepared data sets are."""
    return str(Path(FLAGS.data_dir).expanduser())


def reference(default: str = "resnet50_digits") -> str:
    """What --experiment names; a given workdir remembers its own."""
    kept = workdir.read(Path(FLAGS.workdir)) if FLAGS.workdir else None
    return FLAGS.experiment or (str(kept["reference"]) if kept else default)


def settings() -> list[str]:
    """What --set says; a given workdir remembers its own if neither flag is given."""
    kept = workdir.read(Path(FLAGS.workdir)) if FLAGS.workdir else None
    if kept and not FLAGS.experiment and not FLAGS.set:
        return list(kept["set"])
    return list(FLAGS.set)


def chosen(default: str = "resnet50_digits") -> Experiment:
    """The experiment that the flags describe."""
    return config.override(experiments.load(reference(default)), settings())


def is_elastic() -> bool:
    """As the flags say, or horovodrun that was started so."""
    return FLAGS.elastic or bool(os.environ.get("HOROVOD_ELASTIC"))


def described(processes: int, exact: bool) -> Layout:
    """The layout that the flags describe."""
    try:
        cut = tuple(int(number) for number in FLAGS.cut)
    except ValueError:
        raise errors.UsageError(
            f"--cut={','.join(FLAGS.cut)} must be numbers of blocks, as 3,4,3."
        ) from None
    return Layout(
        processes=processes,
        stages=FLAGS.stages,
        tensor=FLAGS.tensor,
        schedule=FLAGS.schedule,
        chunks=FLAGS.chunks,
        cut=cut,
        recompute=FLAGS.recompute,
        servers=tuple(FLAGS.servers),
        exact=exact,
        elastic=is_elastic(),
    )


def validated(processes: int) -> tuple[Experiment, Layout]:
    """What the flags describe, checked as far as it can be without data or TensorFlow."""
    try:
        kept = workdir.read(Path(FLAGS.workdir)) if FLAGS.workdir else None
        is_given = FLAGS["exact"].present or not kept
        exact = FLAGS.exact if is_given else bool(kept and kept["layout"]["exact"])
        experiment, layout = chosen(), described(processes, exact)
        config.validate(experiment, layout)
        if "HOROVOD_ELASTIC" in os.environ and not FLAGS.workdir:
            raise errors.UsageError(
                "an elastic job needs --workdir: a rank that joins later must know where it is."
            )
        if FLAGS.workdir:
            workdir.check(Path(FLAGS.workdir), experiment, layout)
    except errors.UsageError as error:  # every rank finds it: one of a machine tells it
        error.speaker = os.environ.get("HOROVOD_LOCAL_RANK", "0") == "0"
        raise
    return experiment, layout


def to_evaluate() -> tuple[Experiment, Layout]:
    """What the flags describe; any number of processes can evaluate it."""
    if not FLAGS.workdir or workdir.read(Path(FLAGS.workdir)) is None:
        raise errors.UsageError("evaluate needs --workdir=<folder of a run>.")
    return validated(1)


def to_trace(processes: int) -> tuple[Experiment, Layout]:
    """What the flags describe: a pipeline."""
    experiment, layout = validated(processes)
    if layout.stages < 2:
        raise errors.UsageError(f"trace shows a pipeline: give --stages, not {layout.stages}.")
    return experiment, layout


def to_verify(processes: int) -> tuple[Experiment, Layout]:
    """What the flags describe; the matrix has its own schedules, chunks and cuts."""
    experiment, layout = validated(processes)
    if layout.servers or layout.cut:
        raise errors.UsageError(
            "verify compares layouts of this machine's devices, balanced: leave --servers and "
            "--cut out."
        )
    return experiment, layout


def to_chaos(processes: int) -> list[str]:
    """The flags of the training that is disturbed."""
    known = {"kill", "stop", "damage"} | ({"hosts"} if FLAGS.elastic else set())
    if not FLAGS.kinds or set(FLAGS.kinds) - known:
        raise errors.UsageError(
            f"--kinds={','.join(FLAGS.kinds)} must be of {', '.join(sorted(known))} (hosts with "
            "--elastic)."
        )
    chosen(), validated(processes)
    given = [flag for flag in FLAGS.get_flags_for_module("app.command_line") if flag.present]
    lines = [flag.serialize() for flag in given if flag.name not in OF_CHAOS]
    return [line for text in lines for line in text.split("\n")]


def to_benchmark(processes: int) -> tuple[Experiment, Layout]:
    """What the flags describe, with as many micro-batches as are measured."""
    if FLAGS.exact:
        raise errors.UsageError("benchmark measures the fast way: leave --exact out.")
    experiment, layout = chosen("resnet50_synthetic"), described(processes, False)
    each = config.MEASURED_MICRO_BATCHES if layout.devices > 1 else 1
    experiment = dataclasses.replace(
        experiment, global_batch=experiment.micro_batch * each * processes, steps=1, epochs=None
    )
    config.validate(experiment, layout)
    return experiment, layout
