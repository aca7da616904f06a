"""The experiment, the layout and the job that the flags describe; needs no TensorFlow."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from app import config, errors, experiments
from app.cli import validation, workdir
from app.cli.flags import FLAGS, OF_CHAOS, OF_COMPARE
from app.cli.overrides import override
from app.config import Experiment, Layout, Update
from app.parallel import cluster
from app.tools import chaos, rules


def data_dir() -> str:
    """Where prepared data sets are."""
    return os.path.expanduser(FLAGS.data_dir)


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
    return config.resolved(override(experiments.load(reference(default)), settings()))


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


def validated(
    processes: int, tasks: Callable[[Layout], tuple[int, int]] | None = None
) -> tuple[Experiment, Layout]:
    """What the flags describe, checked as far as it can be without data or TensorFlow.

    Args:
        processes: of the job.
        tasks: how many workers and servers a parameter-server job has; none: no such job.
    """
    try:
        kept = workdir.read(Path(FLAGS.workdir)) if FLAGS.workdir else None
        is_given = FLAGS["exact"].present or not kept
        exact = FLAGS.exact if is_given else bool(kept and kept["layout"]["exact"])
        experiment, layout = chosen(), described(processes, exact)
        is_served = experiment.update.kind == "parameter_server"
        if tasks and not is_served:
            _must_be_served(experiment)
        if tasks and is_served:
            workers, servers = tasks(layout)
            layout = dataclasses.replace(
                layout, processes=1, workers=workers, parameter_servers=servers
            )
        validation.validate(experiment, layout)
        _check_recovery(layout)
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


def _must_be_served(experiment: Experiment) -> None:
    """Checks that nothing was asked that a parameter server alone can do.

    Raises:
        UsageError: it would be ignored.
    """
    given = "--parameter_servers" if FLAGS["parameter_servers"].present else ""
    given = given or ("TF_CONFIG with a ps" if '"ps"' in os.environ.get("TF_CONFIG", "") else "")
    if given:
        raise errors.UsageError(
            f"{given} is of update.kind=parameter_server, but the kind is "
            f"{experiment.update.kind}: set it, or leave the other out."
        )


def to_launch(processes: int) -> tuple[Experiment, Layout]:
    """What the flags describe: a training job about to start on this machine."""

    def starting(layout: Layout) -> tuple[int, int]:
        if cluster.given():
            raise errors.UsageError(
                "TF_CONFIG describes processes that are started one by one, each by `python -m app "
                "train`: unset it to let ./run.sh start them all on this machine."
            )
        return layout.processes, FLAGS.parameter_servers

    return validated(processes, starting)


def to_train(processes: int) -> tuple[Experiment, Layout]:
    """What the flags describe: the training job that this process is of."""

    def described(layout: Layout) -> tuple[int, int]:
        found = cluster.given()
        if not found:
            raise errors.UsageError(
                "update.kind=parameter_server needs a chief, servers and workers: start them on "
                "this machine with ./run.sh train, or on several with TF_CONFIG for each, which "
                "this process lacks."
            )
        if FLAGS["parameter_servers"].present:  # run.sh's processes inherit it
            _must_agree(FLAGS.parameter_servers, len(found.tasks["ps"]))
        return len(found.tasks["worker"]), len(found.tasks["ps"])

    return validated(processes, described)


def _must_agree(given: int, described: int) -> None:
    if given != described:
        raise errors.UsageError(
            f"--parameter_servers={given}, but TF_CONFIG names {described}: leave the flag out."
        )


def synchronous(processes: int, name: str) -> tuple[Experiment, Layout]:
    """What the flags describe, for a command that measures or compares synchronous steps.

    Raises:
        UsageError: another update rule.
    """
    _must_be_synchronous(chosen(), name)
    return validated(processes)


def _must_be_synchronous(experiment: Experiment, name: str) -> None:
    kind = experiment.update.kind
    if kind in ("parameter_server", "local_sgd"):
        raise errors.UsageError(
            f"{name} takes the synchronous step, not that of update.kind={kind}: leave the kind "
            "out; compare shows update rules beside each other."
        )


def _check_recovery(layout: Layout) -> None:
    """Checks the flags of recovery against the layout.

    Raises:
        UsageError: one that could do nothing.
    """
    for name in ("host_discovery_script", "commit_every"):
        if FLAGS[name].present and not layout.elastic:
            raise errors.UsageError(
                f"--{name}={FLAGS[name].value} is of an elastic job: give --elastic too, or leave "
                "it out."
            )
    if FLAGS.repair and layout.processes < 3 and not layout.elastic:
        raise errors.UsageError(
            f"--repair takes the state of a majority, which {layout.processes} processes do not "
            "have: start 3 or more (NP=3), or leave it out."
        )


def to_evaluate() -> tuple[Experiment, Layout]:
    """What the flags describe; any number of processes can evaluate it."""
    must_be_run("evaluate")
    return validated(1)


def must_be_run(name: str) -> None:
    """Checks that --workdir is a run's.

    Raises:
        UsageError: it is none.
    """
    if not FLAGS.workdir or workdir.read(Path(FLAGS.workdir)) is None:
        given = f", and {FLAGS.workdir} is none" if FLAGS.workdir else ""
        raise errors.UsageError(f"{name} needs --workdir=<folder of a run>{given}.")


def to_trace(processes: int) -> tuple[Experiment, Layout]:
    """What the flags describe: a pipeline."""
    experiment, layout = synchronous(processes, "trace")
    if layout.stages < 2:
        raise errors.UsageError(f"trace shows a pipeline: give --stages, not {layout.stages}.")
    return experiment, layout


def to_verify(processes: int) -> tuple[Experiment, Layout]:
    """What the flags describe; the matrix has its own schedules, chunks and cuts."""
    experiment, layout = synchronous(processes, "verify")
    if layout.servers or layout.cut:
        raise errors.UsageError(
            "verify compares layouts of this machine's devices, balanced: leave --servers and "
            "--cut out."
        )
    return experiment, layout


def to_chaos(processes: int) -> list[str]:
    """The flags of the training that is disturbed."""
    known = {*chaos.KINDS, *(["hosts"] if FLAGS.elastic else [])}
    if not FLAGS.kinds or set(FLAGS.kinds) - known:
        raise errors.UsageError(
            f"--kinds={','.join(FLAGS.kinds)} must be of {', '.join(sorted(known))} (hosts with "
            "--elastic)."
        )
    synchronous(processes, "chaos")
    return passed_on((*OF_CHAOS, "workdir"))


def to_compare(processes: int) -> tuple[Experiment, list[str], list[rules.Rule]]:
    """The experiment, the flags of all runs, and the rules to compare.

    Raises:
        UsageError: what cannot be under one of them.
    """
    experiment, found = chosen(), rules.parse(FLAGS.updates)
    if experiment.update != Update():
        raise errors.UsageError("compare sets update.* itself: leave it out, and give --updates.")
    if FLAGS.slowdown > 1 and processes == 1:
        raise errors.UsageError("--slowdown slows one of several workers: set NP=2 or more.")
    if FLAGS.link_mbit and (processes == 1 or FLAGS.trusted_network):
        raise errors.UsageError(
            "--link_mbit shapes the private network of a job: set NP=2 or more, and leave "
            "--trusted_network out."
        )
    if os.environ.get("HOSTS") or cluster.given():
        raise errors.UsageError("compare runs on this machine: unset HOSTS and TF_CONFIG.")
    for rule in found:
        varied = override(experiment, rule.settings)
        layout = described(processes, FLAGS.exact)
        if varied.update.kind == "parameter_server":
            layout = dataclasses.replace(layout, processes=1, workers=processes)
        validation.validate(varied, layout)
    return experiment, passed_on((*OF_COMPARE, "workdir")), found


def passed_on(own: Sequence[str]) -> list[str]:
    """The flags that were given, but for a command's own, for the jobs that it starts."""
    given = [flag for flag in FLAGS.get_flags_for_module("app.cli.flags") if flag.present]
    return [line for flag in given if flag.name not in own for line in _lines(flag)]


def _lines(flag: flags.Flag) -> list[str]:
    """As many as it was given times; a value may have line breaks."""
    if isinstance(flag, flags.MultiFlag):
        return [f"--{flag.name}={value}" for value in flag.value or ()]
    return [flag.serialize()]


def to_benchmark(processes: int) -> tuple[Experiment, Layout]:
    """What the flags describe, with as many micro-batches as are measured."""
    if FLAGS.exact:
        raise errors.UsageError("benchmark measures the fast way: leave --exact out.")
    experiment, layout = chosen("resnet50_synthetic"), described(processes, False)
    _must_be_synchronous(experiment, "benchmark")
    each = config.MEASURED_MICRO_BATCHES if layout.devices > 1 else 1
    experiment = dataclasses.replace(
        experiment, global_batch=experiment.micro_batch * each * processes, steps=1, epochs=None
    )
    validation.validate(experiment, layout)
    return experiment, layout
