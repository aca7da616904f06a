"""Compresses gradients on the wire: `update.compression`.

    float16   each process rounds its gradient, and so does the sum     half the bytes
    topk      each process sends its gradient's largest elements        a few of them

What a process did not send it adds to its next gradient (error feedback, arXiv:1901.09847), so
that it arrives late, but arrives. These residuals are each process's own: a run that is continued
begins them anew. A step that is skipped leaves them as they were before it.
"""

from __future__ import annotations

import tensorflow as tf

from app.config import Update
from app.parallel import placement
from app.training.exchange import FLOAT_BYTES, AllReduce
from app.training.state import Part


class Compressed(AllReduce):
    """An all-reduce that keeps, beside each weight, the residual that was not sent.

    Attributes:
        residuals: for each trainable variable, if there is error feedback.
        previous: residuals before the last step, if steps may be skipped.
    """

    joins_gradients = False

    def __init__(
        self, part: Part, names: list[str], processes: int, rule: Update, factor: float = 1.0
    ) -> None:
        super().__init__(part, names, processes, rule, factor)
        kept = part.trainable if rule.error_feedback and processes > 1 else []
        self.residuals = [_zeros(variable) for variable in kept]
        is_skipping = rule.on_nonfinite == "skip"
        self.previous = [_zeros(variable) for variable in kept if is_skipping]

    def with_residual(self, i: int, value: tf.Tensor) -> tf.Tensor:
        """Adds to a gradient what earlier steps did not send."""
        return value + self.residuals[i] if self.residuals else value

    def keep(self, i: int, residual: tf.Tensor) -> None:
        """Keeps a residual for the next step."""
        if self.previous:
            self.previous[i].assign(self.residuals[i])
        if self.residuals:
            self.residuals[i].assign(residual)

    def settle(self, finite: tf.Tensor) -> None:
        """See base class."""
        for residual, previous in zip(self.residuals, self.previous, strict=bool(self.previous)):
            with tf.device(residual.device):
                residual.assign(tf.where(finite, residual, previous))


class Float16(Compressed):
    """Each process rounds its gradient to float16, and so does the sum."""

    def gradient(self, i: int, value: tf.Tensor) -> tf.Tensor:
        """See base class."""
        whole = self.with_residual(i, value)
        sent = tf.cast(whole, tf.float16)
        self.keep(i, whole - tf.cast(sent, tf.float32))
        return tf.cast(self.sum(i, sent), tf.float32)

    def gradient_bytes(self, size: int) -> float:
        """See base class."""
        return self.sum_bytes(size, tf.float16.size)


class TopK(Compressed):
    """Each process sends the places and values of its largest elements (arXiv:1704.05021).

    Where these would be more bytes than the whole gradient, it is sent whole.
    """

    def gradient(self, i: int, value: tf.Tensor) -> tf.Tensor:
        """See base class."""
        size = value.shape.num_elements()
        count = self._count(size)
        if not count:
            return self.sum(i, value)
        whole = tf.reshape(self.with_residual(i, value), [-1])
        _, places = tf.math.top_k(tf.abs(whole), count, sorted=False)
        values = tf.gather(whole, places) + 0 * tf.reduce_sum(whole)  # not finite if any element is
        rest = tf.tensor_scatter_nd_update(whole, places[:, tf.newaxis], tf.zeros_like(values))
        self.keep(i, tf.reshape(rest, value.shape))
        name = self.names[i]
        each = self.gather(places, f"{name}/places"), self.gather(values, f"{name}/values")
        # One process after the other: on a GPU, equal places would be added in any order.
        total = tf.foldl(
            lambda sums, one: tf.tensor_scatter_nd_add(sums, one[0][:, tf.newaxis], one[1]),
            each,
            tf.zeros([size]),
        )
        return tf.reshape(total, value.shape)

    def gradient_bytes(self, size: int) -> float:
        """See base class."""
        count = self._count(size)
        place_and_value = tf.int32.size + FLOAT_BYTES
        return (self.processes - 1) * count * place_and_value if count else self.sum_bytes(size)

    def _count(self, size: int) -> int:
        """Returns how many of a gradient's elements are sent; 0 if it is sent whole."""
        count = max(1, round(self.rule.topk * size))
        return 0 if count * self.processes >= size else count


KINDS = {"float16": Float16, "topk": TopK}  # by update.compression


def _zeros(variable: tf.Variable) -> tf.Variable:
    with tf.device(placement.collective_device(variable.device)):
        return tf.Variable(tf.zeros(variable.shape), trainable=False)
