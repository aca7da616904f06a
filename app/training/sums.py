"""Sums gradients, statistics and metrics over a step's micro-batches, for one part of the model.

`InPlaceSums` adds to accumulators as the micro-batches come, and exchanges. `TreeSums` adds along
the fixed tree of `parallel/tree.py`, inside and between processes, so that the sum has the
same bits on any number of them. A step uses both in the same way:

    in a graph, for each micro-batch but the last     values = sums.accumulate(values)
    between graphs                                    sums.hold(place, values)
    in the last graph                                 sums.total(sums.held(), the last's values)
"""

from __future__ import annotations

from typing import Any, TypeAlias

import tensorflow as tf

from app.config import Experiment, Layout
from app.parallel import placement, replicas, tree
from app.parallel.topology import slice_of
from app.training import exchange
from app.training.exchange import FLOAT_BYTES, AllReduce, joined
from app.training.state import Part

Values = list[Any]  # tensors; a gradient of an embedding table may be tf.IndexedSlices
Subtrees: TypeAlias = list[list[tf.Tensor]]  # the sums of each subtree, left to right


class InPlaceSums:
    """Accumulators of gradients, then statistics, then (last part) the loss and metrics.

    Args:
        part: whose sums.
        exchange: with the other processes.
        is_adding: make accumulators; a single micro-batch needs none.
    """

    def __init__(self, part: Part, exchange: AllReduce, is_adding: bool = True) -> None:
        self.exchange, count = exchange, len(exchange.names)
        self.joined = joined(part, count, range(count))
        self.variables = []
        for i, shape in zip(self.joined.places, self.joined.shapes, strict=True):
            if is_adding:
                with tf.device(exchange.devices[i]):
                    self.variables.append(tf.Variable(tf.zeros(shape), trainable=False))

    @tf.function(autograph=False, reduce_retracing=True)
    def accumulate(self, values: Values) -> list[tf.Tensor]:
        """Adds a micro-batch's values; of an embedding's gradient, only the rows that it has."""
        for variable, value in zip(self.variables, self.joined.join(values), strict=True):
            if isinstance(value, tf.IndexedSlices):
                variable.scatter_add(value)
            else:
                variable.assign_add(value)
        return []

    def hold(self, place: int, values: list[tf.Tensor]) -> None:
        """Does nothing: the accumulators hold the values."""

    def held(self) -> Subtrees:
        """Returns nothing: the accumulators hold the values."""
        return []

    @tf.function(autograph=False, reduce_retracing=True)
    def total(self, held: Subtrees, last: Values | None = None) -> list[tf.Tensor]:
        """Computes the sums over the step and all processes, and empties the accumulators.

        Args:
            held: nothing.
            last: the last micro-batch's values, if they are not added yet.
        """
        if not self.variables:
            return self.exchange([tf.convert_to_tensor(value) for value in last or ()])
        rest = self.joined.join(last) if last else [None] * len(self.variables)
        # An embedding's rows are added to the sum so far.
        for variable, value in zip(self.variables, rest, strict=True):
            if isinstance(value, tf.IndexedSlices):
                variable.scatter_add(value)
        sums = [tf.identity(variable) for variable in self.variables]
        for variable, early in zip(self.variables, sums, strict=True):
            # Not tf.zeros_like, which is a constant: TensorFlow would compute and copy all
            # constants before the first step.
            variable.assign(tf.raw_ops.ZerosLike(x=early))
        is_in = [value is None or isinstance(value, tf.IndexedSlices) for value in rest]
        whole = [
            early if done else early + value
            for early, value, done in zip(sums, rest, is_in, strict=True)
        ]
        return self.exchange(self.joined.split(whole))

    def settle(self, finite: tf.Tensor) -> None:
        """Forgets the step just summed, unless its sums are finite and change the weights."""
        self.exchange.settle(finite)

    @property
    def bytes_sent(self) -> float:
        """Bytes that this process sends in a step."""
        return self.exchange.bytes_sent


class TreeSums:
    """Subtrees of the exact sum.

    Args:
        part: whose sums.
        names: of each value on the wire, the same on every process.
        slices: the micro-batches of every process, in rank order.
        own: those of this process.
    """

    def __init__(self, part: Part, names: list[str], slices: list[range], own: range) -> None:
        self.joined = joined(part, len(names), range(len(names)))
        self.names = [names[i] for i in self.joined.places]
        self.own, self.processes = own, len(slices)
        self.nodes = [node for each in slices for node in tree.subtrees(each)]
        self.is_pair = self.processes == len(self.nodes) == 2  # of two numbers there is one sum
        self.device = part.device
        self._subtrees: list[tuple[tree.Node, list[tf.Tensor]]] = []

    @tf.function(autograph=False, reduce_retracing=True)
    def accumulate(self, values: Values) -> list[tf.Tensor]:
        """Makes a micro-batch's values dense, and joins the small ones, to be held."""
        return [tf.convert_to_tensor(value) for value in self.joined.join(values)]

    def hold(self, place: int, values: list[tf.Tensor]) -> None:
        """Adds the values of the micro-batch at `place` of the step; places ascend."""
        tree.merge(self._subtrees, (place, 1), values, self._add)

    def held(self) -> Subtrees:
        """Takes out the sums of the subtrees so far."""
        sums, self._subtrees = [sums for _, sums in self._subtrees], []
        return sums

    @tf.function(autograph=False, reduce_retracing=True)
    def total(self, held: Subtrees, last: Values | None = None) -> list[tf.Tensor]:
        """Computes the sums over the step, along the tree.

        Args:
            held: sums of this process's subtrees.
            last: the last micro-batch's values, if they are not in a subtree yet.
        """
        with tf.device(placement.collective_device(self.device)):
            before = self.own if last is None else self.own[:-1]
            subtrees = list(zip(tree.subtrees(before), held, strict=True))
            if last is not None:
                tree.merge(subtrees, (self.own[-1], 1), self.accumulate(last), self._add)
            columns = zip(*(sums for _, sums in subtrees), strict=True)
            each = zip(self.names, columns, strict=True)
            return self.joined.split([self._over_processes(list(v), name) for name, v in each])

    def _over_processes(self, subtrees: list[tf.Tensor], name: str) -> tf.Tensor:
        """Returns one value's sum over all processes, from this process's subtrees."""
        if self.is_pair:
            return replicas.all_reduce(subtrees[0], name)
        each = tf.stack(subtrees)
        if self.processes > 1:
            each = replicas.all_gather(each, name)
        return tree.total(self.nodes, tf.unstack(each, num=len(self.nodes)), tf.add)

    @tf.function(autograph=False)
    def _add(self, left: list[tf.Tensor], right: list[tf.Tensor]) -> list[tf.Tensor]:
        return [a + b for a, b in zip(left, right, strict=True)]

    def settle(self, finite: tf.Tensor) -> None:
        """Does nothing: no residual of a step is kept."""

    @property
    def bytes_sent(self) -> float:
        """Bytes that this process sends in a step, counted as in `exchange.py`."""
        sent = 1 if self.is_pair else (self.processes - 1) * len(tree.subtrees(self.own))
        return float(sent * FLOAT_BYTES * sum(s.num_elements() for s in self.joined.shapes))


def make(
    experiment: Experiment, layout: Layout, part: Part, names: list[str], micro_batches: range
) -> InPlaceSums | TreeSums:
    """Makes the sums of a layout; `micro_batches` are this process's places in a step."""
    if layout.exact:
        total = experiment.num_micro_batches
        slices = [slice_of(total, layout.processes, r) for r in range(layout.processes)]
        return TreeSums(part, names, slices, micro_batches)
    args = (experiment, layout.processes, part, names, len(micro_batches))
    is_adding = len(micro_batches) > 1 or layout.devices > 1
    return InPlaceSums(part, exchange.make(*args), is_adding)
