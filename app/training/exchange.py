"""Sums one part's gradients over all processes.

What the experiment sends instead of the gradients themselves is a strategy of its own, derived
from `AllReduce` (`update.kind`, `update.compression`):

    strategies/compression.py    float16, topk     fewer bytes
    strategies/adasum.py         adasum            pairs of processes
    strategies/local_sgd.py      local_sgd         nothing

Statistics and metrics are always summed as they are.
"""

from __future__ import annotations

import tensorflow as tf

from app.config import Experiment, Update
from app.parallel import placement, replicas
from app.training.joined import Joined
from app.training.state import Part
from app.training.strategy import is_local, load

FLOAT_BYTES = 4  # of an element of a sum


class AllReduce:
    """The sum over all processes.

    Args:
        part: whose sums: a gradient for each trainable variable, then what is always summed.
        names: of each value on the wire, the same on every process.
        processes: of the job; a single one exchanges nothing.
        rule: of the experiment.
        factor: from this process's sums to its own mean: all micro-batches / its own.
    """

    joins_gradients = True  # small ones are exchanged as one: each element is summed by itself

    def __init__(
        self, part: Part, names: list[str], processes: int, rule: Update, factor: float = 1.0
    ) -> None:
        self.part, self.names, self.processes = part, names, processes
        self.rule, self.factor = rule, factor
        self.devices = devices(part, len(names))
        first = 0 if self.joins_gradients else len(part.trainable)
        self.joined = joined(part, len(names), range(first, len(names)))

    def __call__(self, sums: list[tf.Tensor]) -> list[tf.Tensor]:
        """Returns the sums over all processes, in order; inside a graph."""
        if self.processes == 1:
            return sums
        each = zip(self.joined.places, self.joined.shapes, self.joined.join(sums), strict=True)
        results = []
        for i, shape, value in each:
            with tf.device(placement.collective_device(self.devices[i])):
                rule = self.gradient if i < len(self.part.trainable) else self.sum
                results.append(rule(i, tf.ensure_shape(value, shape)))
        return self.joined.split(results)

    def gradient(self, i: int, value: tf.Tensor) -> tf.Tensor:
        """Combines the gradient of the i-th trainable variable over all processes."""
        return self.sum(i, value)

    def sum(self, i: int, value: tf.Tensor) -> tf.Tensor:
        """All-reduces the i-th value."""
        return replicas.all_reduce(value, self.names[i])

    def gather(self, value: tf.Tensor, name: str) -> tf.Tensor:
        """Returns the value of each process, [processes, ...]."""
        each = replicas.all_gather(value[tf.newaxis], name)
        return tf.ensure_shape(each, [self.processes, *value.shape])

    def settle(self, finite: tf.Tensor) -> None:
        """Forgets the step just summed, unless its sums are finite and change the weights."""

    @property
    def bytes_sent(self) -> float:
        """Bytes that this process sends in a step, as if the network were a ring.

        The usual count: 2 (n - 1) / n of what is all-reduced, n - 1 times what is gathered.
        """
        if self.processes == 1:
            return 0.0
        sizes = [shape.num_elements() for shape in self.joined.shapes]
        return sum(
            self.gradient_bytes(size) if i < len(self.part.trainable) else self.sum_bytes(size)
            for i, size in zip(self.joined.places, sizes, strict=True)
        )

    def gradient_bytes(self, size: int) -> float:
        """Returns the bytes that this process sends for a gradient of `size` elements."""
        return self.sum_bytes(size)

    def sum_bytes(self, size: int, element: int = FLOAT_BYTES) -> float:
        """Returns the bytes that this process sends to all-reduce `size` elements."""
        return 2 * (self.processes - 1) / self.processes * size * element


def make(
    experiment: Experiment, processes: int, part: Part, names: list[str], micro_batches: int
) -> AllReduce:
    """Makes the exchange of an experiment; `micro_batches` are this process's in a step."""
    rule, kind = experiment.update, AllReduce
    if rule.kind == "adasum":
        kind = load("adasum").Adasum
    elif is_local(rule):
        kind = load("local_sgd").NoExchange
    elif rule.compression != "none":
        kind = load("compression").KINDS[rule.compression]
    return kind(part, names, processes, rule, experiment.num_micro_batches / micro_batches)


def devices(part: Part, count: int) -> list[str]:
    """Returns where a part's sums are: on their variables' devices, others on the part's."""
    own = [v.device for v in part.trainable] + [v.device for v, _ in part.statistics]
    return own + [part.device] * (count - len(own))


def joined(part: Part, count: int, which: range) -> Joined:
    """Returns how a part's sums are joined, as far as these are on its first device."""
    shapes = [v.shape for v in part.trainable] + [v.shape for v, _ in part.statistics]
    shapes += [tf.TensorShape([part.num_sums])] * (count - len(shapes))
    each = devices(part, count)
    home = {part.device, *each[:1]}
    return Joined(shapes, [i in which and device in home for i, device in enumerate(each)])


def nbytes(tensor: tf.Tensor) -> int:
    """Returns the bytes of a tensor of known shape."""
    return int(tensor.shape.num_elements() * tensor.dtype.size)
