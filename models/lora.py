"""Adds low-rank updates to dense layers (LoRA, arXiv:2106.09685).

    y = x W + bias + scale * (x A) B        A [inputs, rank], B [rank, units], B starts at 0

Trained are A and B: the experiment freezes the rest by the names of its weights
(`transformer.BASE_OF_LORA`). Checkpoints, layouts and export are those of any model.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


class LowRankDense(keras.layers.Dense):
    """A dense layer without activation, and a low-rank update of its kernel.

    Args:
        units: of the output.
        rank: of the update.
        scale: factor of the update.
    """

    def __init__(self, units: int, rank: int, scale: float, **kwargs: Any) -> None:
        super().__init__(units, **kwargs)
        self.update_rank, self.scale = rank, scale
        self.down_initializer = keras.initializers.HeUniform()

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Creates kernel and bias, A and B."""
        super().build(shape)
        self.down = self.add_weight(
            name="lora_a", shape=(shape[-1], self.update_rank), initializer=self.down_initializer
        )
        self.up = self.add_weight(
            name="lora_b", shape=(self.update_rank, self.units), initializer="zeros"
        )

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [..., inputs] to [..., units]."""
        update = keras.ops.matmul(keras.ops.matmul(x, self.down), self.up)
        return super().call(x) + self.scale * update
