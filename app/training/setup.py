"""Sets a run up, the same on every rank: joins the job, opens the data, builds the state."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from app import config
from app.cli import validation, workdir
from app.config import Experiment, Layout
from app.errors import UsageError
from app.parallel import replicas
from app.parallel.topology import Topology, neighbours
from app.recovery import heartbeat, lock, manifest
from app.reporting import chatter
from app.training import data as run_data
from app.training import kernels, strategy
from app.training.agreement import require_same, run_on_all_ranks
from app.training.state import State
from input.batches import DataSet


@dataclass(frozen=True)
class Run:
    """How a run is watched and saved; changes no number.

    Attributes:
        reference, settings: how the experiment was named, for config.json.
        checkpoint_every: steps between checkpoints; 0: one every `checkpoint_seconds`.
        evaluate_every: steps between evaluations; 0: at the end only.
        keep: number of checkpoints to keep, besides the best.
        stop_at_step: stop after that step, to be continued; 0: go on to the end.
        log_every: steps between lines of metrics.jsonl.
        log_examples: write the ids of every step's examples, a file per rank.
        compare_every: steps between comparisons of the replicas; 0: before saves only.
        commit_every: steps between commits to memory, of an elastic run.
        repair: give ranks that differ the majority's state, instead of stopping.
    """

    workdir: Path
    data_dir: str
    reference: str = ""
    settings: tuple[str, ...] = ()
    checkpoint_every: int = 0
    checkpoint_seconds: float = 600.0
    evaluate_every: int = 0
    keep: int = 3
    stop_at_step: int = 0
    log_every: int = 10
    log_examples: bool = False
    compare_every: int = 50
    commit_every: int = 10
    repair: bool = False


class Setup(NamedTuple):
    """A run's data and state, on this rank.

    Attributes:
        total: steps of the whole run.
        mirror: a state in this process to evaluate with, where `state` is on parameter servers.
    """

    experiment: Experiment
    data: DataSet
    state: State
    total: int
    mirror: State | None = None

    def facts(self) -> dict[str, Any]:
        """Returns what must be the same on every rank before a step adds their gradients."""
        variables = self.state.state_dict().items()
        return {
            "versions": replicas.versions(),
            "experiment": config.as_dict(self.experiment),
            "data": run_data.facts(self.data),
            "variables": {name: f"{v.dtype.name} {v.shape.as_list()}" for name, v in variables},
        }


def join(layout: Layout) -> tuple[Topology, Layout]:
    """Joins the job, and gives TensorFlow's arithmetic one order.

    Once per process, before TensorFlow's first operation.

    A graph runs as it was written. TensorFlow's graph rewriting (Grappler) turned the sum of three
    scalars in LARS' trust ratio into a variable to which each was added as it arrived, so that
    replicas drifted apart; what it fuses depends on where a model is cut. It made no step
    measurably faster, and the first one slower.
    """
    local = Topology(0, 1, *neighbours(os.environ)) if layout.elastic else None
    topology = replicas.join(layout.exact, 1 if layout.servers else layout.devices, local)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    if layout.exact:
        tf.keras.utils.set_random_seed(0)  # op determinism refuses to draw a seed itself
        tf.config.experimental.enable_op_determinism()
    require_same("layout", config.as_dict(layout))
    if layout.workers:
        run_on_all_ranks(strategy.load("parameter_server").coordinator)
    if layout.servers:  # what is created before the connection is lost
        partition = strategy.load("partition")
        run_on_all_ranks(lambda: partition.devices(layout, topology))
    with chatter.capture_native_stderr():  # XLA announces itself, once per process
        tf.function(lambda: tf.constant(0), autograph=False, jit_compile=True)()
    return topology, dataclasses.replace(layout, processes=topology.size)


def open_run(experiment: Experiment, layout: Layout, topology: Topology, data_dir: str) -> Setup:
    """Opens the data, and builds the model and its training state on their devices.

    Raises:
        UserError: the same on every rank.
    """
    heartbeat.beat("opening")
    run_on_all_ranks(lambda: validation.validate(experiment, layout))
    data = run_data.open_data(experiment, data_dir)
    run_on_all_ranks(lambda: validation.validate_size(experiment, data.num_train))
    pretrained = run_on_all_ranks(lambda: run_data.pretrained_weights(experiment, data, data_dir))
    total = experiment.total_steps(data.num_train)
    if layout.workers:
        servers = strategy.load("parameter_server")
        states = run_on_all_ranks(lambda: servers.open_state(experiment, layout, data, pretrained))
        return Setup(experiment, data, states[0], total, mirror=states[1])
    placement = None
    if layout.devices > 1 or layout.cut:
        placement = strategy.load("partition").place(experiment, layout, topology, data)
    heartbeat.beat("building")
    state = run_on_all_ranks(lambda: State.of(experiment, data, placement, pretrained))
    return Setup(experiment, data, state, total)


def claim_workdir(
    setup: Setup, layout: Layout, topology: Topology, run: Run, stack: contextlib.ExitStack
) -> list[str]:
    """Locks the workdir for as long as `stack` lasts, and writes config.json, on rank 0.

    Returns the run's warnings.

    Raises:
        UsageError: another job has the folder, or it cannot be written.
        CheckpointError: its checkpoints are of data that meant something else.
    """
    if not topology.is_chief:
        return []
    try:
        stack.enter_context(lock.held(run.workdir))
        kept, meaning = workdir.read(run.workdir) or {}, run_data.meaning(setup.data)
        if manifest.steps(run.workdir / "checkpoints"):  # else nothing was learned yet
            run_data.require_same_meaning(meaning, kept.get("meaning", {}), run.workdir)
        begun = kept.get("kernels")
        about = {"versions": replicas.versions(), "kernels": kernels.names(), "meaning": meaning}
        workdir.claim(
            run.workdir, run.reference, list(run.settings), setup.experiment,
            config.as_dict(layout), about,
        )  # fmt: skip
    except OSError as error:
        raise UsageError(
            f"cannot write to {run.workdir} ({error.strerror}): give another --workdir."
        ) from None
    if not layout.exact or begun in (None, kernels.names()):
        return []
    return [
        f"the run was begun with kernels of {kernels.text(begun)} and continues with those of "
        f"{kernels.text(kernels.names())}: its bits will be those of neither"
    ]
