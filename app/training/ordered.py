"""Reduces tensors in one order, so that replicas get the same bits from the same sums.

TensorFlow splits a reduction over a large tensor among its threads, so that its last bits depend
on their number, in which machines of one job may differ. These functions reduce rows of a fixed
width, each by one thread, then the row results likewise: the order depends only on the size.

    n numbers -> [n / WIDTH, WIDTH] -> n / WIDTH numbers -> ... -> one
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

WIDTH = 4096  # numbers; a vector of so few is never split


def total(x: tf.Tensor) -> tf.Tensor:
    """Adds all numbers of a tensor of known shape; returns a scalar."""
    return _reduced(x, tf.reduce_sum)


def norm(x: tf.Tensor) -> tf.Tensor:
    """Computes the Euclidean norm of a tensor of known shape; returns a scalar."""
    return _reduced(x, tf.math.reduce_euclidean_norm)


def _reduced(x: tf.Tensor, reduce: Callable[[tf.Tensor, Any], tf.Tensor]) -> tf.Tensor:
    while (size := x.shape.num_elements()) > WIDTH:
        if size % WIDTH:
            x = tf.pad(tf.reshape(x, [-1]), [[0, -size % WIDTH]])
        x = reduce(tf.reshape(x, [-1, WIDTH]), 1)
    return reduce(x, None)
