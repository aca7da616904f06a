"""The layers of a transformer encoder: embeddings, encoder layer, head.

B  texts of a micro-batch   T  tokens of its longest   D  width   H  heads   K  classes

What goes from block to block is (x, mask): float [B, T, D], and bool [B, T], true where
there is a token. What stands at padded places is never looked at: not by attention, whose
weight there is exactly 0, nor by the head; without training it is not computed (packing.py).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from models.packing import Padded, packing
from models.shares import Shared

if TYPE_CHECKING:
    from models.transformer import Transformer

Activations = tuple[tf.Tensor, tf.Tensor]
ACTIVATIONS = {
    "gelu": tf.nn.gelu,
    "gelu_tanh": functools.partial(tf.nn.gelu, approximate=True),
    "relu": tf.nn.relu,
}


def dense(units: int, name: str, use_bias: bool = True) -> keras.layers.Dense:
    """A dense layer, started as BERT's are."""
    return keras.layers.Dense(units, kernel_initializer=initializer(), use_bias=use_bias, name=name)


def initializer() -> keras.initializers.Initializer:
    """Truncated normal, deviation 0.02."""
    return keras.initializers.TruncatedNormal(stddev=0.02)


def normalization(config: Transformer, name: str) -> keras.layers.LayerNormalization:
    """Layer normalisation over D (arXiv:1607.06450), float32 inside."""
    return keras.layers.LayerNormalization(epsilon=config.epsilon, name=name)


def dropout(x: tf.Tensor, rate: float, training: bool, seed: tf.Tensor, place: int) -> tf.Tensor:
    """Dropout that is a function of (seed, place): no process and no stage shows in it."""
    if not training or not rate:
        return x
    seed = tf.random.experimental.stateless_fold_in(seed, place)
    return tf.nn.experimental.stateless_dropout(x, rate, seed, rng_alg="philox")


class Embeddings(keras.layers.Layer):
    """Sum of the embeddings of word, position and segment (one segment here), normalised."""

    def __init__(self, config: Transformer, shares: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.words = Shared(
            lambda rows, name: Words(rows, config.width, name=name),
            config.vocabulary, shares, name="words",
        )  # fmt: skip
        self.normalization = normalization(config, "normalization")
        self.position_initializer, self.segment_initializer = initializer(), initializer()

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Creates the tables of positions, [positions, D], and of segments, [2, D]."""
        width = self.config.width
        self.positions = self.add_weight(
            name="positions", shape=(self.config.positions, width), autocast=False,
            initializer=self.position_initializer,
        )  # fmt: skip
        self.segments = self.add_weight(
            name="segments", shape=(2, width), autocast=False,
            initializer=self.segment_initializer,
        )  # fmt: skip
        self.words.build(shape)
        self.normalization.build((*shape, width))

    def call(self, ids: tf.Tensor, training: bool, seed: tf.Tensor) -> Activations:
        """int32 [B, T], 0 where padded, -> ([B, T, D], [B, T])."""
        x = self.words(ids)
        x += self.positions.value[: tf.shape(ids)[1]] + self.segments.value[0]
        x = tf.cast(self.normalization(x), self.compute_dtype)
        return dropout(x, self.config.dropout, training, seed, 0), ids > 0


class Words(keras.layers.Layer):
    """Some rows of the embedding table; ids of other rows give 0."""

    def __init__(self, rows: range, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rows, self.width = rows, width
        self.table_initializer = initializer()

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Creates the table [rows, D]."""
        # Without autocast: in bfloat16 all of it would be cast in every call.
        self.table = self.add_weight(
            name="table", shape=(len(self.rows), self.width), autocast=False,
            initializer=self.table_initializer,
        )  # fmt: skip

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        """int32 [B, T] -> float32 [B, T, D]."""
        own = (ids >= self.rows.start) & (ids < self.rows.stop)
        x = tf.gather(self.table.value, tf.where(own, ids - self.rows.start, 0))
        return tf.where(own[..., tf.newaxis], x, 0.0)


class Layer(keras.layers.Layer):
    """Self-attention and MLP, each a residual branch (arXiv:1706.03762)."""

    def __init__(self, config: Transformer, shares: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.attention = Shared(
            lambda heads, name: Attention(config, heads, name=name),
            config.heads, shares, bias=config.width, name="attention",
        )  # fmt: skip
        self.attention_normalization = normalization(config, "attention_normalization")
        self.mlp = Shared(
            lambda columns, name: MLP(config, len(columns), name=name),
            4 * config.width, shares, bias=config.width, name="mlp",
        )  # fmt: skip
        self.mlp_normalization = normalization(config, "mlp_normalization")

    def build(self, shapes: Any) -> None:
        """Builds what it is made of, for ([B, T, D], [B, T])."""
        for layer in (
            self.attention, self.attention_normalization, self.mlp, self.mlp_normalization
        ):  # fmt: skip
            layer.build(shapes[0])

    def call(self, inputs: Activations, training: bool, seed: tf.Tensor) -> Activations:
        """([B, T, D], [B, T]) -> ([B, T, D], [B, T])."""
        x, mask = inputs
        rate, rows = self.config.dropout, packing(mask, training)

        def attend(share: Attention, y: tf.Tensor) -> tf.Tensor:
            return share(y, rows=rows, training=training, seed=seed)

        def attention(y: tf.Tensor) -> tf.Tensor:
            return dropout(self.attention(y, work=attend), rate, training, seed, 1)

        def mlp(y: tf.Tensor) -> tf.Tensor:
            return dropout(self.mlp(y), rate, training, seed, 2)

        x = rows.pack(x)
        if self.config.norm == "pre":
            x += attention(self.attention_normalization(x))
            x += mlp(self.mlp_normalization(x))
        else:
            x = self.attention_normalization(x + attention(x))
            x = self.mlp_normalization(x + mlp(x))
        return rows.pad(x), mask


class Attention(keras.layers.Layer):
    """What some of the heads add: softmax(q k' / sqrt(D / H)) v of each, mixed.

    The columns of `qkv` are those of the first head's q, k and v, then the second's.
    """

    def __init__(self, config: Transformer, heads: range, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config, self.heads = config, heads
        self.size = config.width // config.heads  # of a head: D / H
        self.qkv = dense(3 * len(heads) * self.size, "qkv")
        self.out = dense(config.width, "out", use_bias=False)

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Creates the weights, for [B, T, D]."""
        self.qkv.build(shape)
        self.out.build((*shape[:-1], len(self.heads) * self.size))

    def call(self, x: tf.Tensor, rows: Padded, training: bool, seed: tf.Tensor) -> tf.Tensor:
        """Rows [..., D] -> rows [..., D]."""
        q, k, v = rows.apart(self.qkv(x), len(self.heads))  # [B, H, T, D / H]
        scores = tf.matmul(q * self.size**-0.5, k, transpose_b=True)  # [B, H, T, T]
        weights = tf.nn.softmax(scores + tf.cast(rows.far, scores.dtype))
        mixed = tf.matmul(self._drop(weights, training, seed), v)  # [B, H, T, D / H]
        return self.out(rows.together(mixed))

    def _drop(self, weights: tf.Tensor, training: bool, seed: tf.Tensor) -> tf.Tensor:
        rate, heads = self.config.dropout, self.heads
        if len(heads) == self.config.heads or not training or not rate:
            return dropout(weights, rate, training, seed, 0)
        # Drawn for all heads, so that these get what they get uncut.
        b, _, t, _ = tf.unstack(tf.shape(weights))
        every = tf.ones([b, self.config.heads, t, t], weights.dtype)
        return weights * dropout(every, rate, training, seed, 0)[:, heads.start : heads.stop]


class MLP(keras.layers.Layer):
    """What some of the 4 D columns add."""

    def __init__(self, config: Transformer, columns: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.activation = ACTIVATIONS[config.activation]
        self.inner = dense(columns, "inner")
        self.out = dense(config.width, "out", use_bias=False)
        self.columns = columns

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Creates the weights, for [B, T, D]."""
        self.inner.build(shape)
        self.out.build((*shape[:-1], self.columns))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Rows [..., D] -> rows [..., D]."""
        return self.out(self.activation(self.inner(x)))


class Head(keras.layers.Layer):
    """One vector a text, and one logit a class."""

    def __init__(self, config: Transformer, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        if config.norm == "pre":
            self.normalization = normalization(config, "normalization")
        if config.pooling == "cls":
            self.pooler = dense(config.width, "pooler")
        self.classifier = dense(num_classes, "classifier")

    def call(self, inputs: Activations, training: bool, seed: tf.Tensor) -> tf.Tensor:
        """([B, T, D], [B, T]) -> [B, K]."""
        x, mask = inputs
        if self.config.norm == "pre":
            x = self.normalization(x)
        if self.config.pooling == "cls":
            x = tf.tanh(self.pooler(x[:, 0]))
        else:
            weights = tf.cast(mask, x.dtype)[:, :, tf.newaxis]
            x = tf.reduce_sum(x * weights, 1) / tf.reduce_sum(weights, 1)
        return self.classifier(dropout(x, self.config.dropout, training, seed, 0))
