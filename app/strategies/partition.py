"""Cuts a model into stages: measured block by block, balanced, the same on every rank."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from app.cli import layouts
from app.config import Experiment, Layout
from app.parallel import replicas
from app.parallel.placement import Placement, balanced, connect, local_devices
from app.parallel.topology import Topology
from app.reporting import chatter
from app.training.agreement import run_on_all_ranks
from app.training.building import keras_defaults, zeros
from input.batches import DataSet
from models import blocks

ROUNDS = 5  # each block's time is the least of them
LENGTH = 64  # tokens, where the data leave it open


class Costs(NamedTuple):
    """The costs of each block, in order.

    Attributes:
        seconds: of a forward and backward pass of a micro-batch.
        bytes: of its weights.
    """

    seconds: tuple[float, ...]
    bytes: tuple[int, ...]


def place(
    experiment: Experiment, layout: Layout, topology: Topology, data: DataSet,
    costs: Costs | None = None,
) -> Placement:  # fmt: skip
    """Returns the placement of a model, the same cut on every rank.

    Args:
        experiment: holds the model.
        layout: stages, chunks, cut.
        topology: this rank.
        data: of the run.
        costs: of the blocks, to balance by; measured if they are needed and None.

    Raises:
        UsageError: on every rank; the model cannot be cut so, or a server does not answer.
    """
    if layout.stages > 1 and not layout.cut and costs is None:
        costs = measure(experiment, topology, data)
    own = run_on_all_ranks(lambda: devices(layout, topology))
    return run_on_all_ranks(
        lambda: cut(experiment, layout, own, experiment.objective.num_outputs(data), costs)
    )


def devices(layout: Layout, topology: Topology) -> list[str]:
    """Returns this process's devices, stage 0's first; connects to stage servers, once.

    Raises:
        UsageError: a stage server does not answer, or has too few devices.
    """
    if not layout.servers:
        return local_devices(layout.devices)
    own = layout.servers[topology.rank * layout.stages : (topology.rank + 1) * layout.stages]
    with chatter.capture_native_stderr():
        return connect(own, layout.tensor)


def cut(
    experiment: Experiment, layout: Layout, devices: Sequence[str], num_outputs: int,
    costs: Costs | None,
) -> Placement:  # fmt: skip
    """Cuts a model as `layout` says, and places it on these devices.

    Args:
        experiment: holds the model.
        layout: stages, chunks, cut.
        devices: per stage as many as a layer has shards, stage 0's first.
        num_outputs: of the model.
        costs: to balance by; None if the layout gives the cut.

    Raises:
        UsageError: more parts than blocks, or a cut that does not add up to them.
    """
    parts = layout.stages * layout.chunks
    count = len(experiment.model.blocks(num_outputs))
    layouts.validate_cut(layout, count)
    t = layout.tensor
    placed = tuple(tuple(devices[i : i + t]) for i in range(0, len(devices), t))
    if parts == 1:
        return Placement(placed, (count,))
    sizes = layout.cut
    if not sizes:
        assert costs is not None
        sizes = balanced(costs.seconds, costs.bytes, parts)
    return Placement(placed, tuple(sizes))


def measure(experiment: Experiment, topology: Topology, data: DataSet) -> Costs:
    """Measures what each block costs on rank 0; returns it on every rank."""
    found = run_on_all_ranks(lambda: block_costs(experiment, data) if topology.is_chief else None)
    return Costs(*replicas.broadcast_json(found))


def block_costs(experiment: Experiment, data: DataSet) -> Costs:
    """Runs each block forward and backward on a micro-batch of zeros.

    On a copy of the model that is thrown away. Blocks of one kind, with the same shapes
    before, in and after them, are measured once.
    """
    length = min(LENGTH, data.limits.get("positions", LENGTH))
    x = zeros(data.input_spec, experiment.micro_batch, length)
    with keras_defaults(experiment):
        model = list(experiment.model.blocks(experiment.objective.num_outputs(data)))
        blocks.build(model, x, experiment.seed, frozen=experiment.frozen)
    known: dict[str, float] = {}
    times, sizes = [], []
    for place, block in enumerate(model):
        y = blocks.forward([block], x, True, tf.zeros([2], tf.int32), place)
        shapes = [v.shape for v in block.weights]
        inside = tf.nest.map_structure(lambda t: t.shape, (x, y))
        kind = f"{getattr(block, 'kind', type(block))} {shapes} {inside}"
        if kind not in known:
            known[kind] = _seconds(block, x)
        times.append(known[kind])
        weights = [v.value for v in block.weights]
        sizes.append(sum(w.shape.num_elements() * w.dtype.size for w in weights))
        x = y
    return Costs(tuple(times), tuple(sizes))


def _seconds(block: Any, x: Any) -> float:
    weights = [v.value for v in block.trainable_variables]

    @tf.function(autograph=False)
    def both_ways() -> Any:
        # As plain graph gradients: nothing is trained here.
        y = blocks.forward([block], x, True, tf.zeros([2], tf.int32))
        outputs = [t for t in tf.nest.flatten(y) if t.dtype.is_floating]
        sources = [t for t in tf.nest.flatten(x) if t.dtype.is_floating] + weights
        return [g for g in tf.gradients(outputs, sources) if g is not None]

    both_ways()
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        both_ways()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
