"""Sums over the step's micro-batches, for one part of the model.

`InPlace` adds to accumulators as the micro-batches come, and exchanges. `Tree` adds along
the fixed tree of `parallel/tree.py`, inside and between processes, so that the sum has the
same bits on any number of them.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from app.parallel import placement, replicas, tree
from app.training.exchange import AllReduce, nbytes
from app.training.state import Part

Values = list[Any]  # tensors; a gradient of an embedding table may be tf.IndexedSlices


class InPlace:
    """Accumulators: gradients, then statistics, then (last part) [loss, correct].

    Args:
        part: whose sums.
        exchange: with the other processes.
        is_adding: make accumulators; a single micro-batch needs none.
    """

    def __init__(self, part: Part, exchange: AllReduce, is_adding: bool = True) -> None:
        self.exchange = exchange
        shapes = [v.shape for v in part.trainable] + [v.shape for v, _ in part.statistics]
        shapes += [tf.TensorShape([2])] * (len(exchange.names) - len(shapes))
        self.variables = []
        for shape, device in zip(shapes, exchange.devices, strict=True):
            if is_adding:
                with tf.device(device):
                    self.variables.append(tf.Variable(tf.zeros(shape), trainable=False))

    @tf.function(autograph=False, reduce_retracing=True)
    def add(self, place: tf.Tensor, values: Values) -> None:
        """Adds a micro-batch's values; of an embedding's gradient only the rows it has."""
        for variable, value in zip(self.variables, values, strict=True):
            if isinstance(value, tf.IndexedSlices):
                variable.scatter_add(value)
            else:
                variable.assign_add(value)

    @tf.function(autograph=False)
    def take(self) -> list[tf.Tensor]:
        """The sums so far, which start from zero again."""
        sums = [tf.identity(variable) for variable in self.variables]
        for variable in self.variables:
            variable.assign(tf.zeros_like(variable))
        return sums

    @tf.function(autograph=False)
    def reduce(self, sums: list[tf.Tensor]) -> list[tf.Tensor]:
        """The sums over all processes, as the update rule has it."""
        return self.exchange(sums)

    def total(self) -> list[tf.Tensor]:
        """The sums over the step."""
        return self.reduce(self.take())

    def settle(self, finite: tf.Tensor) -> None:
        """Forgets the step just summed, unless its sums are finite and move the weights."""
        self.exchange.settle(finite)

    @property
    def bytes_sent(self) -> float:
        """By this process in a step."""
        return self.exchange.bytes_sent


class Tree:
    """Subtrees of the exact sum.

    Args:
        part: whose sums.
        names: of each value on the wire, the same on every process.
        nodes: the subtrees of every process, in rank order.
        processes: of the job; 1 sums nothing between processes.
    """

    def __init__(
        self, part: Part, names: list[str], nodes: list[tree.Node], processes: int
    ) -> None:
        self.names, self.nodes, self.processes = names, nodes, processes
        self.device = part.device
        self.bytes_sent = 0.0  # by this process in a step, as `exchange` counts
        self._subtrees: list[tuple[tree.Node, list[tf.Tensor]]] = []

    def add(self, place: int, values: Values) -> None:
        """Adds the values of the micro-batch at `place` of the step; places ascend."""
        tree.merge(self._subtrees, (int(place), 1), self._dense(values), self._add)

    def total(self) -> list[tf.Tensor]:
        """The sums over the step, along the tree."""
        subtrees, self._subtrees = [sums for _, sums in self._subtrees], []
        with tf.device(placement.horovods(self.device)):
            return self._total(subtrees)

    def settle(self, finite: tf.Tensor) -> None:
        """Nothing of a step is left for later ones."""

    @tf.function(autograph=False, reduce_retracing=True)
    def _dense(self, values: Values) -> list[tf.Tensor]:
        return [tf.convert_to_tensor(value) for value in values]

    @tf.function(autograph=False)
    def _add(self, left: list[tf.Tensor], right: list[tf.Tensor]) -> list[tf.Tensor]:
        return [a + b for a, b in zip(left, right, strict=True)]

    @tf.function(autograph=False)
    def _total(self, subtrees: list[list[tf.Tensor]]) -> list[tf.Tensor]:
        sums = []
        self.bytes_sent = 0.0
        for name, values in zip(self.names, zip(*subtrees, strict=True), strict=True):
            each = tf.stack(values)
            if self.processes > 1:
                self.bytes_sent += (self.processes - 1) * nbytes(each)
                each = replicas.all_gather(each, name)
            each = tf.unstack(each, num=len(self.nodes))
            sums.append(tree.total(self.nodes, each, tf.add))
        return sums
