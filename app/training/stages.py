"""Cutting a model into stages: measured block by block, balanced, the same on every rank."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from app.cli import layouts
from app.config import Experiment, Layout
from app.parallel.placement import Placement, balanced
from app.training.building import start, zeros
from models import blocks

ROUNDS = 5  # each block's time is the least of them
LENGTH = 64  # tokens, where the data leave it open


@dataclass(frozen=True)
class Costs:
    """Of each block, in order.

    Attributes:
        seconds: of a forward and backward pass of a micro-batch.
        bytes: of its weights.
    """

    seconds: tuple[float, ...]
    bytes: tuple[int, ...]


def place(
    experiment: Experiment,
    layout: Layout,
    devices: Sequence[str],
    num_classes: int,
    costs: Costs | None,
) -> Placement:
    """The cut that `layout` asks for, on these devices.

    Args:
        experiment: holds the model.
        layout: stages, chunks, cut.
        devices: as many a stage as a layer has shares, stage 0's first.
        num_classes: of the data.
        costs: balance by these; None if the layout says how to cut.

    Raises:
        UsageError: more parts than blocks, or a cut that is no partition of them.
    """
    parts = layout.stages * layout.chunks
    count = len(experiment.model.blocks(num_classes))
    layouts.validate_cut(layout, count)
    t = layout.tensor
    placed = tuple(tuple(devices[i : i + t]) for i in range(0, len(devices), t))
    if parts == 1:
        return Placement(placed, (count,))
    cut = layout.cut
    if not cut:
        assert costs is not None
        cut = balanced(costs.seconds, costs.bytes, parts)
    return Placement(placed, tuple(cut))


def measure(
    experiment: Experiment, spec: Any, num_classes: int, longest: int | None = None
) -> Costs:
    """Runs each block forward and backward on a micro-batch of zeros.

    On a copy of the model that is thrown away. Blocks of one kind, with the same shapes
    before, in and after them, are measured once.

    Args:
        experiment: holds the model.
        spec: of a batch of inputs.
        num_classes: of the data.
        longest: the most that an open size of the inputs may be; None: anything.
    """
    start(experiment)
    model = list(experiment.model.blocks(num_classes))
    x = zeros(spec, experiment.micro_batch, min(LENGTH, longest or LENGTH))
    blocks.build(model, x, experiment.seed)
    known: dict[str, float] = {}
    times, sizes = [], []
    for place, block in enumerate(model):
        y = blocks.forward([block], x, True, tf.zeros([2], tf.int32), place)
        shapes = [v.shape for v in block.variables]
        inside = tf.nest.map_structure(lambda t: t.shape, (x, y))
        kind = f"{type(block)} {shapes} {inside}"
        if kind not in known:
            known[kind] = _seconds(block, x)
        times.append(known[kind])
        weights = [v.value for v in block.variables]
        sizes.append(sum(w.shape.num_elements() * w.dtype.size for w in weights))
        x = y
    return Costs(tuple(times), tuple(sizes))


def _seconds(block: Any, x: Any) -> float:
    weights = [v.value for v in block.trainable_variables]

    @tf.function(autograph=False)
    def both_ways() -> Any:
        # As plain graph gradients: nothing is trained here.
        y = blocks.forward([block], x, True, tf.zeros([2], tf.int32))
        wanted = [t for t in tf.nest.flatten(y) if t.dtype.is_floating]
        sources = [t for t in tf.nest.flatten(x) if t.dtype.is_floating] + weights
        return [g for g in tf.gradients(wanted, sources) if g is not None]

    both_ways()
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        both_ways()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
