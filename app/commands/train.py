"""Trains an experiment, or continues the run in --workdir."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from absl.flags import DEFINE_integer, FlagValues

from app.cli import groups, rank, selection, workdir
from app.config import Experiment, Layout
from app.errors import UsageError
from app.launch import launcher
from app.launch.supervisor import Limits, Supervisor
from app.parallel import cluster
from app.recovery import preemption

SECTION = "Train"
FLAGS = FlagValues()
groups.ranked(FLAGS)
groups.training(FLAGS)
DEFINE_integer(
    "parameter_servers", 1,
    "The number of parameter servers on this machine, with update.kind=parameter_server.", 1,
    **groups.group(FLAGS, "Processes and machines"),
)  # fmt: skip


def launch(flags: FlagValues, command: list[str]) -> int:
    """Trains on NP processes, and starts them again when they break.

    The ranks get the workdir, so that a later attempt goes on where an earlier one was.
    """
    _, layout = _checked(flags, launcher.processes(), tasks_to_start)
    folder = Path(flags.workdir or workdir.named(selection.reference(flags)))
    workdir.writable(folder)
    attempt = launcher.starter(flags, layout.parameter_servers if layout.workers else 0)
    if not flags.workdir:
        folder = workdir.default(selection.reference(flags))
        command = [*command, f"--workdir={folder}"]
    limits = Limits(restarts=flags.max_restarts, hang=flags.hang_seconds, grace=flags.grace_seconds)
    code = Supervisor(lambda: attempt(command), folder, limits).run()
    if not flags.workdir:
        workdir.forget(folder)
    return code


def run(flags: FlagValues) -> None:
    """Trains as a rank of a job, or as a task of a parameter-server job."""
    experiment, layout = _checked(flags, rank.processes(), tasks_that_run)
    task = cluster.from_environment() if layout.workers else None
    if task:
        rank.tensorflow()
        from app.parallel import runtime_server

        runtime_server.require_private_port(task, flags.trusted_network)
        if task.is_server:
            return runtime_server.join(task)
    preemption.listen()
    topology, layout = rank.join(layout)
    from app.training import trainer

    reference = selection.reference(flags)
    folder = rank.output_folder(flags.workdir, reference, topology.is_chief)
    values = selection.fields(trainer.Run, flags)
    values |= {"workdir": folder, "data_dir": selection.data_dir(flags), "reference": reference}
    run = trainer.Run(**values, settings=tuple(selection.settings(flags)))
    try:
        trainer.train(experiment, layout, topology, run)
    finally:
        if topology.is_chief and not flags.workdir:
            workdir.forget(run.workdir)


Tasks = tuple[int, int]  # workers and servers of a parameter-server job


def tasks_to_start(flags: FlagValues, layout: Layout) -> Tasks:
    """Returns the tasks of a job about to start on this machine."""
    if cluster.from_environment():
        raise UsageError(
            "TF_CONFIG describes processes that are started one by one, each by `python -m app "
            "train`: unset it to let ./run.sh start them all on this machine."
        )
    return layout.processes, flags.parameter_servers


def tasks_that_run(flags: FlagValues, layout: Layout) -> Tasks:
    """Returns the tasks of the job that this process belongs to."""
    found = cluster.from_environment()
    if not found:
        raise UsageError(
            "update.kind=parameter_server needs a chief, servers and workers: start them on "
            "this machine with ./run.sh train, or on several with TF_CONFIG for each, which "
            "this process lacks."
        )
    given, described = flags.parameter_servers, len(found.tasks["ps"])
    if flags["parameter_servers"].present and given != described:  # run.sh passes it on
        raise UsageError(
            f"--parameter_servers={given}, but TF_CONFIG names {described}: leave the flag out."
        )
    return len(found.tasks["worker"]), described


def _checked(
    flags: FlagValues, processes: int, tasks: Callable[[FlagValues, Layout], Tasks]
) -> tuple[Experiment, Layout]:
    """Returns what the flags describe; a parameter-server job has these tasks."""
    with selection.one_speaker():
        experiment, layout = selection.experiment(flags), selection.layout(flags, processes)
        if experiment.update.kind == "parameter_server":
            workers, servers = tasks(flags, layout)
            layout = dataclasses.replace(
                layout, processes=1, workers=workers, parameter_servers=servers
            )
        else:
            _must_have_no_servers(flags, experiment)
        selection.check(flags, experiment, layout)
    return experiment, layout


def _must_have_no_servers(flags: FlagValues, experiment: Experiment) -> None:
    given = "--parameter_servers" if flags["parameter_servers"].present else ""
    if not given and cluster.has_servers():
        given = "TF_CONFIG with a ps"
    if given:
        raise UsageError(
            f"{given} is of update.kind=parameter_server, but the kind is "
            f"{experiment.update.kind}: set it, or leave the other out."
        )
