"""Selects the experiment and the layout that a command's flags describe; needs no TensorFlow."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl.flags import FlagValues

from app import config, experiments
from app.cli import overrides, validation, workdir
from app.config import Experiment, Layout, field_names
from app.errors import UsageError

DEFAULT = "resnet50_digits"
# Update rules whose processes do not take each step together.
APART = ("parameter_server", "local_sgd")


def data_dir(flags: FlagValues) -> str:
    """Returns the folder of prepared data sets."""
    return os.path.expanduser(flags.data_dir)


def reference(flags: FlagValues, default: str = DEFAULT) -> str:
    """Returns what --experiment names; a given workdir remembers its own."""
    config = run_in_workdir(flags)
    return flags.experiment or (str(config["reference"]) if config else default)


def settings(flags: FlagValues) -> list[str]:
    """Returns what --set says; a given workdir remembers its own if neither flag is given."""
    config = run_in_workdir(flags)
    if config and not flags.experiment and not flags.set:
        return list(config["set"])
    return list(flags.set)


def run_in_workdir(flags: FlagValues) -> dict[str, Any] | None:
    """Returns the config.json of --workdir, None if it is no run yet."""
    return workdir.read(Path(flags.workdir)) if flags.workdir else None


def must_be_run(flags: FlagValues, command: str) -> None:
    """Checks that --workdir is a run's.

    Raises:
        UsageError: it is none.
    """
    if run_in_workdir(flags) is None:
        given = f", and {flags.workdir} is none" if flags.workdir else ""
        raise UsageError(f"{command} needs --workdir=<folder of a run>{given}.")


def experiment(flags: FlagValues, default: str = DEFAULT) -> Experiment:
    """Returns the experiment that the flags describe."""
    named = experiments.load(reference(flags, default))
    return config.resolved(overrides.override(named, settings(flags)))


def fields(kind: type, flags: FlagValues) -> dict[str, Any]:
    """Returns the values of the fields of a dataclass that are flags, by name."""
    return {name: flags[name].value for name in field_names(kind) if name in flags}


def layout(flags: FlagValues, processes: int) -> Layout:
    """Returns the layout that the flags describe; of a run, as exact as it was begun."""
    values = fields(Layout, flags)
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
    values["elastic"] = values.get("elastic") or bool(os.environ.get("HOROVOD_ELASTIC"))
    if "workdir" in flags and not ("exact" in flags and flags["exact"].present):
        run = run_in_workdir(flags)
        values |= {"exact": bool(run["layout"]["exact"])} if run else {}
    return Layout(processes=processes, **values)


def checked(flags: FlagValues, processes: int) -> tuple[Experiment, Layout]:
    """Returns what the flags describe, checked as far as it can be without data or TensorFlow."""
    with one_speaker():
        found = experiment(flags), layout(flags, processes)
        check(flags, *found)
    return found


def synchronous(flags: FlagValues, processes: int, command: str) -> tuple[Experiment, Layout]:
    """Returns what the flags describe, for a command that takes synchronous steps.

    Raises:
        UsageError: another update rule.
    """
    must_be_synchronous(experiment(flags), command)
    return checked(flags, processes)


def must_be_synchronous(experiment: Experiment, command: str) -> None:
    """Checks the update rule.

    Raises:
        UsageError: its processes do not take each step together.
    """
    kind = experiment.update.kind
    if kind in APART:
        raise UsageError(
            f"{command} takes the synchronous step, not that of update.kind={kind}: leave the kind "
            "out; compare shows update rules beside each other."
        )


def check(flags: FlagValues, experiment: Experiment, layout: Layout) -> None:
    """Checks what the flags describe, against the run in --workdir too.

    Raises:
        UsageError: what cannot be.
    """
    validation.validate(experiment, layout)
    if "elastic" in flags:
        check_recovery(flags, layout)
    if "HOROVOD_ELASTIC" in os.environ and not flags.workdir:
        raise UsageError(
            "an elastic job needs --workdir: a rank that joins later must know where it is."
        )
    if flags.workdir:
        workdir.check(Path(flags.workdir), experiment, layout)


def check_recovery(flags: FlagValues, layout: Layout) -> None:
    """Checks the flags of recovery against the layout.

    Raises:
        UsageError: one that could do nothing.
    """
    for name in ("host_discovery_script", "commit_every"):
        if flags[name].present and not layout.elastic:
            raise UsageError(
                f"--{name}={flags[name].value} is of an elastic job: give --elastic too, or leave "
                "it out."
            )
    if flags.repair and layout.processes < 3 and not layout.elastic:
        raise UsageError(
            f"--repair takes the state of a majority, which {layout.processes} processes do not "
            "have: start 3 or more (NP=3), or leave it out."
        )


@contextlib.contextmanager
def one_speaker() -> Iterator[None]:
    """Lets one rank of each machine print an error that every rank finds."""
    try:
        yield
    except UsageError as error:
        error.speaker = os.environ.get("HOROVOD_LOCAL_RANK", "0") == "0"
        raise


def must_have_weights(flags: FlagValues, experiment: Experiment) -> None:
    """Checks --weights against what the run keeps.

    Raises:
        UsageError: it keeps no moving average.
    """
    if flags.weights == "average" and not experiment.optimization.ema_decay:
        raise UsageError(
            "--weights=average needs a moving average of the weights, which this run does not keep "
            "(optimization.ema_decay is 0): leave it out."
        )
