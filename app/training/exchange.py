"""How one part's sums become the same on all processes: `update.kind` and `update.compression`.

    all-reduce   the sum of all, as it is
    float16      the sum of what each rounded                      half the bytes
    topk         the sum of the largest elements of each           a few of them
    adasum       pairs of processes: what agrees is averaged, what differs is added

What a process did not send it adds to its next gradient (error feedback, arXiv:1901.09847), so
that it comes late, but comes. These remainders are each process's own: a run that starts again
begins them anew. Of a step that is skipped all is dropped: they are then what they were before it.
Statistics and metrics are always summed as they are.
"""

from __future__ import annotations

import tensorflow as tf

from app.config import Experiment, Update
from app.parallel import placement, replicas
from app.training import ordered
from app.training.joined import Joined
from app.training.state import Part


class AllReduce:
    """The sum over all processes.

    Args:
        part: whose sums: a gradient for each trainable variable, then what is always summed.
        names: of each value on the wire, the same on every process.
        processes: of the job; one exchanges nothing.
        rule: of the experiment.

    Attributes:
        bytes_sent: by this process in a step, were the network a ring (the usual count:
            2 (n - 1) / n of what is all-reduced, n - 1 times what is gathered).
    """

    joins_gradients = True  # small ones are exchanged as one: each element is summed for itself

    def __init__(self, part: Part, names: list[str], processes: int, rule: Update) -> None:
        self.part, self.names, self.processes, self.rule = part, names, processes, rule
        self.devices = devices(part, len(names))
        first = 0 if self.joins_gradients else len(part.trainable)
        self.joined = joined(part, len(names), range(first, len(names)))
        self.bytes_sent = 0.0

    def __call__(self, sums: list[tf.Tensor]) -> list[tf.Tensor]:
        """The sums over all processes, in order; inside a graph."""
        if self.processes == 1:
            return sums
        self.bytes_sent = 0.0  # counted as the graph is made
        each = zip(self.joined.places, self.joined.shapes, self.joined.join(sums), strict=True)
        results = []
        for i, shape, value in each:
            with tf.device(placement.horovods(self.devices[i])):
                rule = self.gradient if i < len(self.part.trainable) else self.sum
                results.append(rule(i, tf.ensure_shape(value, shape)))
        return self.joined.split(results)

    def gradient(self, i: int, value: tf.Tensor) -> tf.Tensor:
        """Of the i-th trainable variable, from all processes'."""
        return self.sum(i, value)

    def sum(self, i: int, value: tf.Tensor) -> tf.Tensor:
        """All-reduces the i-th value."""
        self.bytes_sent += 2 * (self.processes - 1) / self.processes * nbytes(value)
        return replicas.all_reduce(value, self.names[i])

    def settle(self, finite: tf.Tensor) -> None:
        """Forgets the step just summed, unless its sums are finite and move the weights."""

    def gather(self, value: tf.Tensor, name: str) -> tf.Tensor:
        """What each process gives, [processes, ...]."""
        self.bytes_sent += (self.processes - 1) * nbytes(value)
        each = replicas.all_gather(value[tf.newaxis], name)
        return tf.ensure_shape(each, [self.processes, *value.shape])


class _Compressed(AllReduce):
    """Keeps what was not sent, beside each weight; and what it was before the last step."""

    joins_gradients = False

    def __init__(self, part: Part, names: list[str], processes: int, rule: Update) -> None:
        super().__init__(part, names, processes, rule)
        kept = part.trainable if rule.error_feedback and processes > 1 else []
        self.remainders = [self._zeros(variable) for variable in kept]
        is_skipping = rule.on_nonfinite == "skip"
        self.before = [self._zeros(variable) for variable in kept if is_skipping]

    def owed(self, i: int, value: tf.Tensor) -> tf.Tensor:
        """A gradient with what is left of earlier ones."""
        return value + self.remainders[i] if self.remainders else value

    def keep(self, i: int, remainder: tf.Tensor) -> None:
        """For the next step."""
        if self.before:
            self.before[i].assign(self.remainders[i])
        if self.remainders:
            self.remainders[i].assign(remainder)

    def settle(self, finite: tf.Tensor) -> None:
        """See base class."""
        for remainder, before in zip(self.remainders, self.before, strict=bool(self.before)):
            with tf.device(remainder.device):
                remainder.assign(tf.where(finite, remainder, before))

    @staticmethod
    def _zeros(variable: tf.Variable) -> tf.Variable:
        with tf.device(placement.horovods(variable.device)):
            return tf.Variable(tf.zeros(variable.shape), trainable=False)


class Rounded(_Compressed):
    """Each rounds its gradient to float16, and so does the sum."""

    def gradient(self, i: int, value: tf.Tensor) -> tf.Tensor:
        """See base class."""
        owed = self.owed(i, value)
        sent = tf.cast(owed, tf.float16)
        self.keep(i, owed - tf.cast(sent, tf.float32))
        return tf.cast(self.sum(i, sent), tf.float32)


class TopK(_Compressed):
    """Each sends the places and values of its largest elements (arXiv:1704.05021).

    Where these would be more bytes than all of the gradient, it is sent whole.
    """

    def gradient(self, i: int, value: tf.Tensor) -> tf.Tensor:
        """See base class."""
        size = value.shape.num_elements()
        count = max(1, round(self.rule.topk * size))
        if count * self.processes >= size:
            return self.sum(i, value)
        owed = tf.reshape(self.owed(i, value), [-1])
        _, places = tf.math.top_k(tf.abs(owed), count, sorted=False)
        values = tf.gather(owed, places) + 0 * tf.reduce_sum(owed)  # none hides what is not finite
        rest = tf.tensor_scatter_nd_update(owed, places[:, tf.newaxis], tf.zeros_like(values))
        self.keep(i, tf.reshape(rest, value.shape))
        name = self.names[i]
        each = self.gather(places, f"{name}/places"), self.gather(values, f"{name}/values")
        # One process after the other: on a GPU, places that meet would add up in any order.
        total = tf.foldl(
            lambda sums, one: tf.tensor_scatter_nd_add(sums, one[0][:, tf.newaxis], one[1]),
            each,
            tf.zeros([size]),
        )
        return tf.reshape(total, value.shape)


class Adasum(AllReduce):
    """Pairs of processes, then pairs of pairs (arXiv:2006.02924, equation 3).

    adasum(a, b) = (1 - a.b / 2|a|^2) a + (1 - a.b / 2|b|^2) b

    Two equal gradients give one of them, two that are orthogonal their sum. Each process's is
    that of the mean over its own examples. Horovod's own needs MPI; this one gathers all
    gradients on all processes, whose memory must hold them.

    Args:
        factor: from this process's sums to its own mean: all micro-batches / its own.
    """

    joins_gradients = False

    def __init__(
        self, part: Part, names: list[str], processes: int, rule: Update, factor: float
    ) -> None:
        super().__init__(part, names, processes, rule)
        self.factor = factor

    def gradient(self, i: int, value: tf.Tensor) -> tf.Tensor:
        """See base class."""
        each = tf.unstack(self.gather(value * self.factor, self.names[i]))
        while len(each) > 1:
            each = [adasum(a, b) for a, b in zip(each[::2], each[1::2], strict=True)]
        return each[0]


class Alone(AllReduce):
    """No exchange: this process's own mean, as `local_sgd` steps by."""

    def __init__(
        self, part: Part, names: list[str], processes: int, rule: Update, factor: float
    ) -> None:
        super().__init__(part, names, processes, rule)
        self.factor = factor

    def __call__(self, sums: list[tf.Tensor]) -> list[tf.Tensor]:
        """See base class."""
        return [value * self.factor for value in sums]


def adasum(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Of two gradients of one weight; one that is all zeros gives the other."""
    dot = ordered.total(a * b)
    own_a = 1 - tf.math.divide_no_nan(dot, 2 * ordered.total(a * a))
    own_b = 1 - tf.math.divide_no_nan(dot, 2 * ordered.total(b * b))
    return own_a * a + own_b * b


def make(
    experiment: Experiment, processes: int, part: Part, names: list[str], micro_batches: int
) -> AllReduce:
    """The exchange of an experiment; `micro_batches` are this process's in a step."""
    rule = experiment.update
    factor = experiment.num_micro_batches / micro_batches
    if rule.kind == "adasum":
        return Adasum(part, names, processes, rule, factor)
    if is_local(rule):
        return Alone(part, names, processes, rule, factor)
    kinds = {"none": AllReduce, "float16": Rounded, "topk": TopK}
    return kinds[rule.compression](part, names, processes, rule)


def is_local(rule: Update) -> bool:
    """Whether processes step alone; after rounds of one step with nothing else, they need not."""
    is_synchronous = rule.local_steps == 1 and rule.outer_rate == 1 and not rule.outer_momentum
    return rule.kind == "local_sgd" and not is_synchronous


def devices(part: Part, count: int) -> list[str]:
    """Where a part's sums are: beside their variables, [loss, correct] on the part's device."""
    beside = [v.device for v in part.trainable] + [v.device for v, _ in part.statistics]
    return beside + [part.device] * (count - len(beside))


def joined(part: Part, count: int, which: range) -> Joined:
    """How a part's sums are joined, as far as these are on its first device."""
    shapes = [v.shape for v in part.trainable] + [v.shape for v, _ in part.statistics]
    shapes += [tf.TensorShape([2])] * (count - len(shapes))
    each = devices(part, count)
    home = {part.device, *each[:1]}
    return Joined(shapes, [i in which and device in home for i, device in enumerate(each)])


def nbytes(tensor: tf.Tensor) -> int:
    """Of a tensor of known shape."""
    return int(tensor.shape.num_elements() * tensor.dtype.size)
