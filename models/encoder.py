"""The layers of a transformer encoder: embeddings, encoder layer, head.

B  texts of a micro-batch   T  tokens of its longest   D  width   H  heads   K  classes

What goes from block to block is (x, mask): float [B, T, D], and bool [B, T], true where
there is a token. What stands at padded places is never looked at: not by attention, whose
weight there is exactly 0, nor by the head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

if TYPE_CHECKING:
    from models.transformer import Transformer

Activations = tuple[tf.Tensor, tf.Tensor]
FAR = -30000.0  # added to a score so that its weight is 0; float16 holds it too


def dense(units: int, name: str) -> keras.layers.Dense:
    """A dense layer, started as BERT's are."""
    return keras.layers.Dense(units, kernel_initializer=initializer(), name=name)


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

    def __init__(self, config: Transformer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.normalization = normalization(config, "normalization")
        self.table_initializer = initializer()

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Creates the tables [vocabulary, D], [positions, D] and [2, D]."""

        def table(name: str, rows: int) -> keras.Variable:
            shape = (rows, self.config.width)
            return self.add_weight(name=name, shape=shape, initializer=self.table_initializer)

        self.words = table("words", self.config.vocabulary)
        self.positions = table("positions", self.config.positions)
        self.segments = table("segments", 2)
        self.normalization.build((*shape, self.config.width))

    def call(self, ids: tf.Tensor, training: bool, seed: tf.Tensor) -> Activations:
        """int32 [B, T], 0 where padded, -> ([B, T, D], [B, T])."""
        # The table is gathered from as it is: a cast would copy all of it.
        x = tf.gather(self.words.value, ids)
        x += self.positions.value[: tf.shape(ids)[1]] + self.segments.value[0]
        x = tf.cast(self.normalization(x), self.compute_dtype)
        return dropout(x, self.config.dropout, training, seed, 0), ids > 0


class Layer(keras.layers.Layer):
    """Self-attention and MLP, each a residual branch (arXiv:1706.03762)."""

    def __init__(self, config: Transformer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.qkv = dense(3 * config.width, "qkv")
        self.attention_out = dense(config.width, "attention_out")
        self.attention_normalization = normalization(config, "attention_normalization")
        self.mlp_in = dense(4 * config.width, "mlp_in")
        self.mlp_out = dense(config.width, "mlp_out")
        self.mlp_normalization = normalization(config, "mlp_normalization")

    def call(self, inputs: Activations, training: bool, seed: tf.Tensor) -> Activations:
        """([B, T, D], [B, T]) -> ([B, T, D], [B, T])."""
        x, mask = inputs
        rate = self.config.dropout

        def drop(y: tf.Tensor, place: int) -> tf.Tensor:
            return dropout(y, rate, training, seed, place)

        def attention(y: tf.Tensor) -> tf.Tensor:
            mixed = self._attend(self.qkv(y), mask, lambda weights: drop(weights, 0))
            return drop(self.attention_out(mixed), 1)

        def mlp(y: tf.Tensor) -> tf.Tensor:
            return drop(self.mlp_out(tf.nn.gelu(self.mlp_in(y))), 2)

        if self.config.norm == "pre":
            x += attention(self.attention_normalization(x))
            x += mlp(self.mlp_normalization(x))
        else:
            x = self.attention_normalization(x + attention(x))
            x = self.mlp_normalization(x + mlp(x))
        return x, mask

    def _attend(self, qkv: tf.Tensor, mask: tf.Tensor, drop: Any) -> tf.Tensor:
        """[B, T, 3 D] -> [B, T, D]: softmax(q k' / sqrt(D / H)) v for each head."""
        heads, width = self.config.heads, self.config.width
        shape = tf.shape(qkv)
        qkv = tf.reshape(qkv, [shape[0], shape[1], 3, heads, width // heads])
        q, k, v = tf.unstack(tf.transpose(qkv, [2, 0, 3, 1, 4]))  # [B, H, T, D / H]
        scores = tf.matmul(q * (width // heads) ** -0.5, k, transpose_b=True)  # [B, H, T, T]
        away = tf.cast(tf.where(mask, 0.0, FAR), scores.dtype)
        weights = tf.nn.softmax(scores + away[:, tf.newaxis, tf.newaxis, :])
        mixed = tf.transpose(tf.matmul(drop(weights), v), [0, 2, 1, 3])  # [B, T, H, D / H]
        return tf.reshape(mixed, [shape[0], shape[1], width])


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
