"""Before the first step: join the job, open the data, cut the model; the same on every rank."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import tensorflow as tf

from app import config
from app.cli import validation
from app.config import Experiment, Layout
from app.errors import DataError, UsageError, UserError
from app.parallel import replicas, topology
from app.parallel.placement import Placement, connect, local_devices
from app.parallel.topology import Topology
from app.recovery import heartbeat
from app.reporting import chatter
from app.training import data as meaning
from app.training import kernels, stages, strategy
from app.training.state import State
from input import InputError, packages
from input.batches import DataSet
from models import ModelError

Result = TypeVar("Result")
SAME = "Give all machines the same files, flags and --workdir"


def join(layout: Layout) -> tuple[Topology, Layout]:
    """Joins the job, and gives TensorFlow's arithmetic one order.

    Once a process, before TensorFlow's first operation.

    A graph is run as it was written. Of the sum of three scalars in LARS' trust ratio, TensorFlow's
    graph rewriting (Grappler) made a variable to which each was added as it came, so that replicas
    drifted apart; what it fuses depends on where a model is cut. It made no step measurably
    faster, and the first one slower.
    """
    beside = Topology(0, 1, *topology.neighbours(os.environ)) if layout.elastic else None
    where = replicas.join(layout.exact, 1 if layout.servers else layout.devices, beside)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    if layout.exact:
        tf.keras.utils.set_random_seed(0)  # op determinism refuses to draw a seed itself
        tf.config.experimental.enable_op_determinism()
    agree_on("layout", config.as_dict(layout))
    if layout.workers:
        together(strategy.load("parameter_server").connected)
    together(lambda: devices_of(layout, where))  # what is made before servers are known is lost
    with chatter.kept():  # XLA announces itself, once a process
        tf.function(lambda: tf.constant(0), autograph=False, jit_compile=True)()
    return where, dataclasses.replace(layout, processes=where.size)


def together(action: Callable[[], Result]) -> Result:
    """Does the same on every rank; what fails on one fails on all.

    Raises:
        UserError: the same on every rank, told by the first that has it.
    """
    result, error = None, None
    try:
        result = action()
    except UserError as caught:
        error = caught
    except InputError as caught:
        error = DataError(str(caught))
    except ModelError as caught:
        error = UsageError(str(caught))
    replicas.agree(error)
    return cast(Result, result)


def agree_on(what: str, ours: dict[str, Any], way_out: str = SAME) -> None:
    """Goes on if all ranks have the same.

    Raises:
        UsageError: on every rank, if one has another than rank 0; shows every difference.
    """
    text = json.dumps(ours)
    theirs = replicas.broadcast_text(text)

    def compare() -> None:
        if text != theirs:
            lines = config.differences(json.loads(text), json.loads(theirs))
            raise UsageError(
                f"this rank has another {what} than rank 0: {'; '.join(lines)}. {way_out}."
            )

    together(compare)


def agree_on_kernels(exact: bool) -> None:
    """Goes on if all ranks compute with the same kernels; with `exact`, for the same processor.

    Raises:
        UsageError: on every rank; shows what differs.
    """
    found = kernels.names()
    if exact:
        way_out = "--exact needs one kind of processor: leave it out, or limit all to the lesser"
        agree_on("kind of kernel", found, f"{way_out} ({kernels.LIMITS[0]}=AVX2)")
    else:
        way_out = f"Set {kernels.VARIABLE} to 0 or 1 on all machines"
        agree_on("kind of kernel", {"library": found["library"]}, way_out)


def open_data(experiment: Experiment, data_dir: str) -> DataSet:
    """Opens the data on every rank, once it is sure that all mean the same experiment.

    Raises:
        UsageError: the model does not fit the data; other data on another rank.
    """
    agree_on("experiment", config.as_dict(experiment))

    def opened() -> DataSet:
        data = experiment.data.open(data_dir)
        for _ in data.ready():
            heartbeat.beat("opening")
        return data

    data = together(opened)
    agree_on("data", {**data_facts(data), "meaning": meaning.of(data)})
    validation.validate_limits(experiment, data.limits)
    return data


class Opened(NamedTuple):
    """A run's data and state, on this rank.

    Attributes:
        total: steps of the whole run.
        mirror: a state of this process's own to evaluate with, where the other is on servers.
    """

    experiment: Experiment
    data: DataSet
    state: State
    total: int
    mirror: State | None = None

    def facts(self) -> dict[str, Any]:
        """What must be the same on every rank, before a step joins their sums."""
        named = self.state.named().items()
        return {
            "versions": replicas.versions(),
            "experiment": config.as_dict(self.experiment),
            "data": data_facts(self.data),
            "variables": {name: f"{v.dtype.name} {v.shape.as_list()}" for name, v in named},
        }


def open_run(experiment: Experiment, layout: Layout, where: Topology, data_dir: str) -> Opened:
    """Opens the data, and builds the model on its devices.

    Raises:
        UserError: the same on every rank.
    """
    heartbeat.beat("opening")
    together(lambda: validation.validate(experiment, layout))
    data = open_data(experiment, data_dir)
    together(lambda: validation.validate_size(experiment, data.num_train))
    source = together(lambda: pretrained(experiment, data, data_dir))
    total = experiment.total_steps(data.num_train)
    if layout.workers:
        servers = strategy.load("parameter_server")
        state, mirror = together(lambda: servers.open_state(experiment, layout, data, source))
        return Opened(experiment, data, state, total, mirror)
    placement = placed(experiment, layout, where, data)
    heartbeat.beat("building")
    state = together(
        lambda: State(experiment, data.input_spec, data.num_classes, placement, source)
    )
    return Opened(experiment, data, state, total)


def data_facts(data: DataSet) -> dict[str, Any]:
    """What the order of examples, and so the result, depends on."""
    return {
        "training examples": data.num_train,
        "evaluation examples": data.num_evaluation,
        "classes": data.num_classes,
        "digest": data.digest,
    }


def devices_of(layout: Layout, where: Topology) -> list[str]:
    """Of this process, stage 0's first; connects to stage servers, once.

    Raises:
        UsageError: a stage server that does not answer, or has too few devices.
    """
    if not layout.servers:
        return local_devices(layout.devices)
    own = layout.servers[where.rank * layout.stages : (where.rank + 1) * layout.stages]
    with chatter.kept():
        return connect(own, layout.tensor)


def placed(
    experiment: Experiment,
    layout: Layout,
    where: Topology,
    data: DataSet,
    costs: stages.Costs | None = None,
) -> Placement:
    """The cut of the model, the same on every rank; its blocks are measured if need be."""
    if layout.stages > 1 and not layout.cut and costs is None:
        costs = measured(experiment, where, data)
    devices = together(lambda: devices_of(layout, where))
    return together(lambda: stages.place(experiment, layout, devices, data.num_classes, costs))


def measured(experiment: Experiment, where: Topology, data: DataSet) -> stages.Costs:
    """What each block costs on rank 0."""
    longest = data.limits.get("positions")

    def measure() -> stages.Costs | None:
        if not where.is_chief:
            return None
        return stages.measure(experiment, data.input_spec, data.num_classes, longest)

    found = together(measure)
    text = replicas.broadcast_text(json.dumps(dataclasses.asdict(found)) if found else "")
    return stages.Costs(**json.loads(text))


def pretrained(experiment: Experiment, data: DataSet, data_dir: str) -> Path | None:
    """The folder of the weights that training starts from, if it does.

    Raises:
        InputError: no folder, or one of weights that were trained with other words.
    """
    name = getattr(experiment.model, "init_from", None)
    if not name:
        return None
    folder = packages.pretrained(name, data_dir)
    if hasattr(data, "must_suit"):
        data.must_suit(folder)
    return folder


def training_batches(
    experiment: Experiment, data: DataSet, where: Topology, order: Sequence[int]
) -> Iterator[tuple[tf.Tensor, ...]]:
    """A process's micro-batches of these steps."""
    total = experiment.num_micro_batches
    mine = where.micro_batches(total)
    for run in runs(order):

        def number(k: Any, first: int = run.start) -> Any:
            return (first + k // len(mine)) * total + mine.start + k % len(mine)

        yield from data.train(experiment.seed, experiment.micro_batch, number, len(run) * len(mine))


def runs(order: Sequence[int]) -> Iterator[range]:
    """Ascending numbers as runs without a gap."""
    if isinstance(order, range):
        yield order
        return
    for _, run in itertools.groupby(enumerate(order), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        yield range(numbers[0], numbers[-1] + 1)
