"""Splits layers over devices (tensor parallelism): a sum whose terms are computed in shards.

    shard 0   heads 0 to 5    x -> y0 --+
    shard 1   heads 6 to 11   x -> y1 --+--> sum, + bias      (arXiv:1909.08053, figure 3)

A shard holds its part of the weights: columns of the first matrix, rows of the last, so nothing is
communicated between the two. A layer that is not split is one shard.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import tensorflow as tf

from models import ModelError

Place = Callable[[], AbstractContextManager[Any]]  # returns a context that selects a device
Work = Callable[[keras.Layer, tf.Tensor], tf.Tensor]  # calls a shard


class Sharded(keras.layers.Layer):
    """A sum of shards.

    Args:
        make: makes the layer for a range of the items, under this name; the layer's weights must
            be its only state.
        items: number of items to split: heads, columns or rows.
        count: number of shards.
        bias: width of the bias that is added once to the sum; 0: no bias.

    Raises:
        ModelError: there are more shards than items.
    """

    def __init__(
        self,
        make: Callable[[range, str], keras.Layer],
        items: int,
        count: int,
        bias: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if count > items:
            raise ModelError(
                f"{self.name} has {items} parts to split, fewer than the {count} devices of a "
                f"stage: set at most --tensor={items}."
            )
        bounds = [items * i // count for i in range(count + 1)]
        # Variables, and so checkpoints and initial weights, are named after `share`.
        self.shards = [make(range(bounds[i], bounds[i + 1]), f"share{i}") for i in range(count)]
        self.places: Sequence[Place] = (contextlib.nullcontext,) * count
        self.width, self.bias = bias, None

    def build(self, shape: Any) -> None:
        """Builds each shard on its device, for an input of this shape, and the bias."""
        for shard, place in zip(self.shards, self.places, strict=True):
            with place():
                shard.build(shape)
        if self.width:
            self.bias = self.add_weight(name="bias", shape=(self.width,), initializer="zeros")

    def call(self, x: tf.Tensor, work: Work = lambda shard, x: shard(x)) -> tf.Tensor:
        """Returns the sum of work(shard, x) over the shards.

        Gradients flow to the weights and to x, not to what `work` captures.
        """
        pairs = zip(self.shards, self.places, strict=True)
        y = tf.add_n([self._run(place, shard, work, x) for shard, place in pairs])
        return y if self.bias is None else y + tf.cast(self.bias.value, y.dtype)

    def _run(self, place: Place, shard: keras.Layer, work: Work, x: tf.Tensor) -> tf.Tensor:
        """Runs a shard's forward and backward pass on its device.

        By default TensorFlow places a gradient anywhere, not where the forward pass ran.
        """
        if len(self.shards) == 1 or not x.dtype.is_floating:
            with place():
                return work(shard, x)

        @tf.custom_gradient
        def on_device(x: tf.Tensor) -> Any:
            with place(), tf.GradientTape(persistent=True) as tape:
                x = tf.identity(x)  # copied to the device once
                tape.watch(x)
                y = work(shard, x)

            def gradient(dy: tf.Tensor, variables: Sequence[tf.Variable] = ()) -> Any:
                with place():
                    inputs, weights = tape.gradient(y, [x, list(variables)], dy)
                return inputs, weights

            return y, gradient

        return on_device(x)


def nested_layers(block: keras.Layer) -> list[keras.Layer]:
    """Returns a block and all layers inside it, in Keras' order.

    Keras has no public way to list the layers inside a layer: this is the only use of the private
    one. Initial weights depend on the order (`blocks.build`), so a test pins it.
    """
    return list(block._flatten_layers())


def assign_devices(block: keras.Layer, places: Sequence[Place]) -> None:
    """Sets the device of each shard of a block's split layers."""
    for layer in nested_layers(block):
        if isinstance(layer, Sharded):
            layer.places = tuple(places)


def refuse_losses(block: keras.Layer) -> None:
    """Refuses split layers with losses or constraints, which need a whole weight.

    Args:
        block: has been called.

    Raises:
        ModelError: names the layer.
    """
    for layer in nested_layers(block):
        if not isinstance(layer, Sharded) or len(layer.shards) == 1:
            continue
        variables = [v for shard in layer.shards for v in shard.trainable_variables]
        kinds = {"constraint": any(v.constraint is not None for v in variables)}
        kinds["regularizer or other loss"] = any(shard.losses for shard in layer.shards)
        for kind, is_there in kinds.items():
            if is_there:
                raise ModelError(
                    f"the shards of {layer.name} have a {kind}, which needs all of a layer that "
                    "--tensor splits: remove it, or split the model with --stages instead."
                )


def whole_name(variable: keras.Variable) -> str:
    """Returns the name of the weight that a variable holds all or a shard of."""
    return re.sub(r"/share\d+(?=/)", "", variable.path)
