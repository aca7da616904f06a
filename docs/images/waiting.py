"""A model whose blocks only wait: its trace shows a pipeline as on devices of their own.

Each of 8 blocks waits 30 ms forward and 60 ms backward, which takes no core of this machine, so
four stages do not compete for two cores. Threads, messages and the schedule are those of training.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from app.config import Experiment, Optimization
from input.images import Images


@dataclass(frozen=True)
class Waiting:
    """8 blocks that wait, and a head that classifies."""

    milliseconds: float = 30.0  # of a block's forward pass; its backward pass takes twice as long

    def blocks(self, num_classes: int) -> list[Any]:
        """Returns the blocks, the head in the last."""
        import keras
        import tensorflow as tf

        def wait(x: tf.Tensor, seconds: float) -> tf.Tensor:
            def sleep(value: Any) -> Any:
                time.sleep(seconds)
                return value

            return tf.ensure_shape(tf.numpy_function(sleep, [x], x.dtype), x.shape)

        @tf.custom_gradient
        def slow(x: tf.Tensor) -> Any:
            seconds = self.milliseconds / 1e3
            return wait(x, seconds), lambda dy: wait(dy, 2 * seconds)

        class Block(keras.layers.Layer):
            def __init__(self, units: int, **kwargs: Any) -> None:
                super().__init__(**kwargs)
                self.flatten = keras.layers.Flatten(name="flatten")
                self.dense = keras.layers.Dense(units, name="dense")

            def call(self, x: tf.Tensor) -> tf.Tensor:
                return slow(self.dense(self.flatten(x)))

        return [*(Block(16, name=f"block{i}") for i in range(7)), Block(num_classes, name="head")]


def waiting() -> Experiment:
    """8 micro-batches a step."""
    return Experiment(
        model=Waiting(),
        data=Images("synthetic", size=8, synthetic_examples=64, synthetic_classes=4),
        global_batch=32,
        micro_batch=4,
        steps=3,
        optimization=Optimization(warmup_epochs=0),
    )
