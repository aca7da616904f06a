"""Adds Keras' `losses` of a model's layers to the objective.

    objective = mean over G examples of the cross-entropy
              + mean over V micro-batches of the blocks' losses

A weight regularizer has the same value in all micro-batches, so it counts once a step; a loss of
activations is each micro-batch's own (Keras divides an `activity_regularizer` by the examples).

The gradient enters through the block's output: when the output's gradient comes back, it starts
that of the losses too (as in Megatron-LM's MoEAuxLossAutoScaler). So a pipeline has nothing else to
differentiate, and the gradients in a block add up in one order, wherever the model is cut.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from models import ModelError


def of(block: keras.Layer) -> tf.Tensor | None:
    """Returns the sum of a block's losses in its last call, float32 []; None if it has none."""
    losses = [tf.reduce_sum(tf.cast(loss, tf.float32)) for loss in block.losses]
    return sum(losses[1:], losses[0]) if losses else None


def attach(y: Any, loss: tf.Tensor, weight: tf.Tensor, name: str) -> Any:
    """Returns a block's output unchanged; its gradient gives the loss the gradient `weight`.

    Args:
        y: the output, a tensor or a tuple of such.
        loss: of the block.
        weight: float32 [].
        name: of the block.

    Raises:
        ModelError: the output has no gradient.
    """
    flat = tf.nest.flatten(y)
    places = [i for i, tensor in enumerate(flat) if tensor.dtype.is_floating]
    if not places:
        raise ModelError(
            f"{name} adds to the loss, but returns only integers, through which no gradient comes "
            "back to it: return activations, or remove its losses and regularizers."
        )

    @tf.custom_gradient
    def through(loss: tf.Tensor, *outputs: tf.Tensor) -> Any:
        def gradient(*dys: tf.Tensor) -> Any:
            return weight, *(tf.convert_to_tensor(dy) for dy in dys)

        return [tf.identity(output) for output in outputs], gradient

    for i, tensor in zip(places, through(loss, *(flat[i] for i in places)), strict=True):
        flat[i] = tensor
    return tf.nest.pack_sequence_as(y, flat)
