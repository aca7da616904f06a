"""Runs one part of the model forward and backward: the GradientTape of training.

    part 0           part 1                part 2, the last
    x --forward--> activations --forward--> loss
    gradients <--backward-- gradients <--backward-- 1

Inside a compiled step (one part) this is one graph. In a pipeline each part's forward is a
compiled function of its own, called under an eager tape, which keeps what the backward pass
needs; that makes tracing time independent of the number of micro-batches and stages.
(The shards of a split layer have a tape of their own: `models/shards.py` says why.)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from app.config import Experiment
from app.training import step_sums
from app.training.state import Part, State
from models import blocks

Values = list[Any]  # tensors; a gradient of an embedding table is tf.IndexedSlices


class MicroBatch(NamedTuple):
    """What every part needs to know of a micro-batch."""

    number: tf.Tensor  # int64 []: step * V + its place in the step
    targets: Any  # of the objective; only the last part reads them, others have None
    loss_scale: tf.Tensor  # float32 []
    weight: tf.Tensor | None = None  # float32 []: the sum of its losses' weights over G, if any


class Carried(NamedTuple):
    """Activations for the next part, and what the blocks so far add to the loss."""

    x: Any
    loss: tf.Tensor  # float32 [], for the metrics: its gradient is attached (`models/losses.py`)


@dataclass
class Record:
    """What a forward pass keeps for its backward pass."""

    tape: tf.GradientTape | None  # None if it is to be computed again
    x: Any
    y: list[tf.Tensor]  # what is differentiated
    values: list[tf.Tensor]  # statistics, and of the last part the step's sums
    weights: Sequence[Any] = ()  # what it was computed with, if not the part's own variables


class Differentiation:
    """One part's forward and backward pass.

    Args:
        experiment: with the loss and the seed.
        state: holds the part.
        index: of the part.
        is_compiled: forward is a function of its own; otherwise it becomes part of the caller's.
        recompute: keep only the part's input, and compute the rest again when it is needed
            (arXiv:1604.06174).
    """

    def __init__(
        self,
        experiment: Experiment,
        state: State,
        index: int,
        is_compiled: bool = False,
        recompute: bool = False,
    ) -> None:
        self.experiment, self.recompute = experiment, recompute
        self.part: Part = state.parts[index]
        self.is_last = index == len(state.parts) - 1
        self.run: Any = self._run
        if is_compiled:
            self.run = tf.function(self._run, autograph=False, reduce_retracing=True)

    def forward(
        self, x: Any, micro_batch: MicroBatch, weights: Sequence[tf.Tensor] = ()
    ) -> tuple[Any, Record]:
        """Computes activations [b, ...] from activations or inputs; the last part, the scaled loss.

        Args:
            x: the part's input.
            micro_batch: the same for every part.
            weights: values to use instead of the part's trainable variables, where these are
                remote and read once for many micro-batches.
        """
        if self.recompute:
            y, values = self.run(x, micro_batch)
            return y, Record(None, x, [], values)
        return self._record(x, micro_batch, weights)

    def backward(
        self, record: Record, micro_batch: MicroBatch, gradient: Any = None
    ) -> tuple[list[tf.Tensor], Values]:
        """Returns the gradients of the part's input, and those of its weights with the values.

        Args:
            record: of the forward pass; its tape is released.
            micro_batch: that of the forward pass.
            gradient: of the part's output, as a list; None for the loss.
        """
        if record.tape is None:
            _, again = self._record(record.x, micro_batch)
            record.tape, record.y = again.tape, again.y
        inputs = _differentiable(record.x)
        assert record.tape is not None
        gradients = record.tape.gradient(
            record.y,
            [inputs, record.weights or self.part.trainable],
            output_gradients=gradient,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        record.tape = None
        return gradients[0], [*gradients[1], *record.values]

    def activation_bytes(self, x: Any, micro_batch: MicroBatch) -> dict[str, int]:
        """Returns the bytes that a micro-batch keeps on each device until its backward pass.

        Counted in a graph: tensors of the forward pass that the backward pass reads, without
        weights and constants.

        Args:
            x: tensors or specs of the part's input.
            micro_batch: tensors or specs.
        """
        forward: set[str] = set()

        @tf.function(autograph=False)
        def both_ways(x: Any, micro_batch: MicroBatch) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(_differentiable(x))
                y, _ = self._run(x, micro_batch)
            graph = tf.compat.v1.get_default_graph()
            # A side effect of tracing, on purpose: this function is traced once and never run.
            forward.update(op.name for op in graph.get_operations())
            return tape.gradient(_differentiable(y), [_differentiable(x), self.part.trainable])

        graph = both_ways.get_concrete_function(x, micro_batch).graph
        backward = [op for op in graph.get_operations() if op.name not in forward]
        kept = {t.ref() for op in backward for t in op.inputs if t.op.name in forward}
        weights = ("Const", "ReadVariableOp", "ResourceGather")
        held: dict[str, int] = {}
        for tensor in (ref.deref() for ref in kept):
            if tensor.op.type not in weights:
                device = tensor.device or self.part.device
                held[device] = held.get(device, 0) + _bytes(tensor)
        return held

    def _record(
        self, x: Any, micro_batch: MicroBatch, weights: Sequence[tf.Tensor] = ()
    ) -> tuple[Any, Record]:
        with tf.GradientTape() as tape, blocks.reading(self.part.blocks, weights):
            tape.watch([*_differentiable(x), *weights])
            y, values = self.run(x, micro_batch)
        return y, Record(tape, x, _differentiable(y), values, weights)

    def _run(self, x: Any, micro_batch: MicroBatch) -> tuple[Any, list[tf.Tensor]]:
        e, part = self.experiment, self.part
        seed = tf.stack([tf.cast(e.seed, tf.int64), micro_batch.number])
        seed = tf.random.experimental.stateless_fold_in(tf.cast(seed, tf.int32), 0)
        x, *added = x if isinstance(x, Carried) else (x,)
        with blocks.recording(_of_blocks(micro_batch.loss_scale, e, micro_batch)) as recorded:
            y = blocks.forward(part.blocks, x, True, seed, part.first)
        values = [s.value for s in recorded.statistics]
        added += recorded.losses
        if not self.is_last:
            return Carried(y, tf.stop_gradient(_sum(added))) if added else y, values
        loss, sums = step_sums.of_micro_batch(e, y, micro_batch.targets)
        if added:
            sums[0] = loss + _of_blocks(_sum(added), e, micro_batch)
        return loss * micro_batch.loss_scale, [*values, tf.stack(sums)]


def _of_blocks(value: tf.Tensor, e: Experiment, micro_batch: MicroBatch) -> tf.Tensor:
    """Multiplies by what a micro-batch counts in the mean of the blocks' losses."""
    if micro_batch.weight is None:
        return value / e.num_micro_batches
    return value * micro_batch.weight


def _sum(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Adds from the first to the last, wherever the model is cut."""
    return functools.reduce(tf.add, values)


def _bytes(tensor: Any) -> int:
    """Returns a tensor's bytes; 0 for resources and unknown shapes."""
    count = tensor.shape.num_elements() if tensor.dtype != tf.resource else None
    return (count or 0) * tensor.dtype.size


def _differentiable(nest: Any) -> list[tf.Tensor]:
    """Returns the floating-point tensors of activations; masks and ids have no gradient."""
    return [x for x in tf.nest.flatten(nest) if x.dtype.is_floating]
