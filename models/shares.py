"""Tensor parallelism: work that is a sum, done in shares, each at a place of its own.

    share 0   heads 0 to 5    x -> y0 --+
    share 1   heads 6 to 11   x -> y1 --+--> sum, + bias      (arXiv:1909.08053, figure 3)

A share holds its part of the weights: columns of what comes first, rows of what comes last,
so that between the two nothing is sent. Uncut is one share.
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

Place = Callable[[], AbstractContextManager[Any]]  # gives what to enter: a device
Work = Callable[[keras.Layer, tf.Tensor], tf.Tensor]  # calls a share


class Shared(keras.layers.Layer):
    """A sum of shares.

    Args:
        make: the layer that does these of the items, under this name; weights are all its state.
        items: how many there are to share: heads, columns, rows.
        count: shares.
        bias: width of what is added once to the sum; 0: nothing.

    Raises:
        ModelError: more shares than items.
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
                f"{self.name} has {items} parts to share, fewer than the {count} devices of a "
                f"stage: set at most --tensor={items}."
            )
        bounds = [items * i // count for i in range(count + 1)]
        self.shares = [make(range(bounds[i], bounds[i + 1]), f"share{i}") for i in range(count)]
        self.places: Sequence[Place] = (contextlib.nullcontext,) * count
        self.width, self.bias = bias, None

    def build(self, shape: Any) -> None:
        """Builds each share at its place, for an x of this shape; and the bias."""
        for share, place in zip(self.shares, self.places, strict=True):
            with place():
                share.build(shape)
        if self.width:
            self.bias = self.add_weight(name="bias", shape=(self.width,), initializer="zeros")

    def call(self, x: tf.Tensor, work: Work = lambda share, x: share(x)) -> tf.Tensor:
        """The sum over the shares of work(share, x); only weights and x have a gradient."""
        each = zip(self.shares, self.places, strict=True)
        y = tf.add_n([self._at(place, share, work, x) for share, place in each])
        return y if self.bias is None else y + tf.cast(self.bias.value, y.dtype)

    def _at(self, place: Place, share: keras.Layer, work: Work, x: tf.Tensor) -> tf.Tensor:
        """A share's work at its place, forward and backward.

        Left to itself, TensorFlow computes a gradient wherever it likes, not where the
        forward pass was.
        """
        if len(self.shares) == 1 or not x.dtype.is_floating:
            with place():
                return work(share, x)

        @tf.custom_gradient
        def there(x: tf.Tensor) -> Any:
            with place(), tf.GradientTape(persistent=True) as tape:
                x = tf.identity(x)  # sent here once
                tape.watch(x)
                y = work(share, x)

            def gradient(dy: tf.Tensor, variables: Sequence[tf.Variable] = ()) -> Any:
                with place():
                    inputs, weights = tape.gradient(y, [x, list(variables)], dy)
                return inputs, weights

            return y, gradient

        return there(x)


def layers_of(block: keras.Layer) -> list[keras.Layer]:
    """Returns a block and all layers inside it.

    `_flatten_layers` is a private method of Keras: of layers that are no `keras.Model` there is no
    public one. Its order is part of what initial weights are keyed by (`blocks.build`).
    """
    return list(block._flatten_layers())


def put(block: keras.Layer, places: Sequence[Place]) -> None:
    """Says where the shares of a block are."""
    for layer in layers_of(block):
        if isinstance(layer, Shared):
            layer.places = tuple(places)


def refuse_losses(block: keras.Layer) -> None:
    """Refuses, in the shares of a split layer that has been called, what needs a whole weight.

    Raises:
        ModelError: names the layer.
    """
    for layer in layers_of(block):
        if not isinstance(layer, Shared) or len(layer.shares) == 1:
            continue
        variables = [v for share in layer.shares for v in share.trainable_variables]
        kinds = {"constraint": any(v.constraint is not None for v in variables)}
        kinds["regularizer or other loss"] = any(share.losses for share in layer.shares)
        for kind, is_there in kinds.items():
            if is_there:
                raise ModelError(
                    f"the shares of {layer.name} have a {kind}, which needs all of a layer that "
                    "--tensor splits: take it away, or cut the model with --stages instead."
                )


def name(variable: keras.Variable) -> str:
    """A weight's name, the same for all its shares."""
    return re.sub(r"/share\d+(?=/)", "", variable.path)
