"""Combines the gradients of pairs of processes, then of pairs of pairs: `update.kind=adasum`.

    adasum(a, b) = (1 - a.b / 2|a|^2) a + (1 - a.b / 2|b|^2) b      arXiv:2006.02924, equation 3

Two equal gradients give one of them, two that are orthogonal their sum. Horovod's own Adasum needs
MPI; this one gathers all gradients on all processes, whose memory must hold them.
"""

from __future__ import annotations

import tensorflow as tf

from app.training import ordered
from app.training.exchange import FLOAT_BYTES, AllReduce


class Adasum(AllReduce):
    """Adasum of the processes' gradients, each the mean over the process's own examples."""

    joins_gradients = False

    def gradient(self, i: int, value: tf.Tensor) -> tf.Tensor:
        """See base class."""
        each = tf.unstack(self.gather(value * self.factor, self.names[i]))
        while len(each) > 1:
            each = [adasum(a, b) for a, b in zip(each[::2], each[1::2], strict=True)]
        return each[0]

    def gradient_bytes(self, size: int) -> float:
        """See base class."""
        return (self.processes - 1) * size * FLOAT_BYTES


def adasum(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Combines two gradients of one weight; if one is all zeros, returns the other."""
    dot = ordered.total(a * b)
    own_a = 1 - tf.math.divide_no_nan(dot, 2 * ordered.total(a * a))
    own_b = 1 - tf.math.divide_no_nan(dot, 2 * ordered.total(b * b))
    return own_a * a + own_b * b
