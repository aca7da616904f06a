"""Joins small tensors to one vector, so that one operation replaces one for each.

    kernel   scale   kernel   bias   metrics      values, in a part's order
    kernel   kernel   scale|bias|metrics          joined: the large ones, then all small ones

A ResNet-50 has 53 large gradients and 215 small values beside them. What is added, exchanged or
updated element by element has the same bits, from a graph of far fewer operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

SMALL = 4096  # elements


class Joined:
    """Joins a list of tensors, and splits it again.

    Args:
        shapes: of each tensor, all dimensions known.
        may_join: for each, whether it is joined if it is small.
    """

    def __init__(self, shapes: Sequence[tf.TensorShape], may_join: Sequence[bool]) -> None:
        self._shapes = list(shapes)
        self._sizes = [shape.num_elements() for shape in shapes]
        each = list(enumerate(zip(self._sizes, may_join, strict=True)))
        self._small = [i for i, (size, may) in each if may and size <= SMALL]
        self._large = [i for i, (size, may) in each if not may or size > SMALL]

    @property
    def places(self) -> list[int]:
        """The place of each joined value in the list; the vector has that of its first."""
        return self._large + self._small[:1]

    @property
    def shapes(self) -> list[tf.TensorShape]:
        """The shape of each joined value."""
        vector = [tf.TensorShape([sum(self._sizes[i] for i in self._small)])]
        return [self._shapes[i] for i in self._large] + (vector if self._small else [])

    def join(self, values: Sequence[Any]) -> list[Any]:
        """Returns the large values as they are, then one vector of the small ones."""
        flat = [self._flat(i, values[i]) for i in self._small]
        return [values[i] for i in self._large] + ([tf.concat(flat, 0)] if flat else [])

    def split(self, joined: Sequence[Any]) -> list[Any]:
        """Returns the values in their own order and shapes."""
        values = dict(zip(self._large, joined, strict=False))
        if self._small:
            pieces = tf.split(joined[-1], [self._sizes[i] for i in self._small])
            values |= {i: self._shaped(i, x) for i, x in zip(self._small, pieces, strict=True)}
        return [values[i] for i in range(len(self._shapes))]

    def _flat(self, i: int, value: Any) -> tf.Tensor:
        value = tf.convert_to_tensor(value)
        return value if self._shapes[i].rank == 1 else tf.reshape(value, [-1])

    def _shaped(self, i: int, piece: tf.Tensor) -> tf.Tensor:
        return piece if self._shapes[i].rank == 1 else tf.reshape(piece, self._shapes[i])
