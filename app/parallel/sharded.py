"""Makes several variables read and assign as one: a weight that is split over devices."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class Sharded:
    """Variables that are one tensor, cut along an axis.

    Attributes:
        shards: in order.
        axis: along which the tensor is cut.
    """

    shards: tuple[tf.Variable, ...]
    axis: int

    @property
    def dtype(self) -> tf.DType:
        """The type of the tensor."""
        return self.shards[0].dtype

    @property
    def shape(self) -> tf.TensorShape:
        """The shape of the whole tensor."""
        dimensions = self.shards[0].shape.as_list()
        dimensions[self.axis] = sum(self.lengths)
        return tf.TensorShape(dimensions)

    @property
    def lengths(self) -> list[int]:
        """The shards' lengths along the axis."""
        return [shard.shape[self.axis] for shard in self.shards]

    def read_value(self) -> tf.Tensor:
        """Returns the whole tensor."""
        return tf.concat([shard.read_value() for shard in self.shards], self.axis)

    def numpy(self) -> np.ndarray:
        """Returns the whole tensor as an array."""
        return self.read_value().numpy()

    def assign(self, value: tf.Tensor) -> None:
        """Assigns each shard its slice of a whole tensor."""
        pieces = tf.split(tf.convert_to_tensor(value, self.dtype), self.lengths, self.axis)
        for shard, piece in zip(self.shards, pieces, strict=True):
            shard.assign(piece)


Weight: TypeAlias = tf.Variable | Sharded
