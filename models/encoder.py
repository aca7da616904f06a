"""The layers of a transformer: embeddings, encoder layer, heads for a text and for its tokens.

B  texts of a micro-batch   T  tokens of its longest   D  width   H  heads   K  classes

Blocks pass on (x, mask): float [B, T, D], and bool [B, T], true where there is a token. Padded
places change no result: attention gives them a weight of exactly 0, and the head ignores them.
Outside training nothing is computed for them (packing.py).
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import keras
import tensorflow as tf

from models.lora import LowRankDense
from models.packing import Padded, packing
from models.shards import Sharded

Activations = tuple[tf.Tensor, tf.Tensor]


class Update(NamedTuple):
    """The low-rank update of each kernel of an encoder layer; of rank 0 there is none."""

    rank: int
    scale: float


NO_UPDATE = Update(0, 0.0)
ACTIVATIONS = {
    "gelu": tf.nn.gelu,
    "gelu_tanh": functools.partial(tf.nn.gelu, approximate=True),
    "relu": tf.nn.relu,
}


def dense(
    units: int, name: str, use_bias: bool = True, update: Update = NO_UPDATE
) -> keras.layers.Dense:
    """Returns a dense layer, initialised as BERT's are; with a low-rank update if it has a rank."""
    common: dict[str, Any] = {"kernel_initializer": initializer(), "use_bias": use_bias}
    if update.rank:
        return LowRankDense(units, update.rank, update.scale, name=name, **common)
    return keras.layers.Dense(units, name=name, **common)


def initializer() -> keras.initializers.Initializer:
    """Returns BERT's initializer: a truncated normal of standard deviation 0.02."""
    return keras.initializers.TruncatedNormal(stddev=0.02)


def normalization(epsilon: float, name: str) -> keras.layers.LayerNormalization:
    """Returns layer normalisation over D (arXiv:1607.06450), float32 inside."""
    return keras.layers.LayerNormalization(epsilon=epsilon, name=name)


def dropout(x: tf.Tensor, rate: float, training: bool, seed: tf.Tensor, place: int) -> tf.Tensor:
    """Applies dropout that is a function of (seed, place), whichever process or stage runs it."""
    if not training or not rate:
        return x
    seed = tf.random.experimental.stateless_fold_in(seed, place)
    return tf.nn.experimental.stateless_dropout(x, rate, seed, rng_alg="philox")


class Embeddings(keras.layers.Layer):
    """The normalised sum of word, position and segment embeddings (only one segment is used).

    Args:
        vocabulary: rows of the word table, which the shards split.
        positions: rows of the position table.
        width: D.
        rate: of dropout.
        epsilon: of the normalisation.
        shards: devices over which the layer is split.
    """

    def __init__(
        self, vocabulary: int, positions: int, width: int, rate: float, epsilon: float,
        shards: int, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self.num_positions, self.width, self.rate = positions, width, rate
        self.words = Sharded(
            lambda rows, name: Words(rows, width, name=name), vocabulary, shards, name="words"
        )
        self.normalization = normalization(epsilon, "normalization")
        self.position_initializer, self.segment_initializer = initializer(), initializer()

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Creates the position table, [positions, D], and the segment table, [2, D]."""
        self.positions = self.add_weight(
            name="positions", shape=(self.num_positions, self.width), autocast=False,
            initializer=self.position_initializer,
        )  # fmt: skip
        self.segments = self.add_weight(
            name="segments", shape=(2, self.width), autocast=False,
            initializer=self.segment_initializer,
        )  # fmt: skip
        self.words.build(shape)
        self.normalization.build((*shape, self.width))

    def call(self, ids: tf.Tensor, training: bool, seed: tf.Tensor) -> Activations:
        """Maps int32 [B, T], 0 where padded, to ([B, T, D], [B, T])."""
        x = self.words(ids)
        x += self.positions.value[: tf.shape(ids)[1]] + self.segments.value[0]
        x = tf.cast(self.normalization(x), self.compute_dtype)
        return dropout(x, self.rate, training, seed, 0), ids > 0


class Words(keras.layers.Layer):
    """A range of rows of the word table; ids outside the range give 0."""

    def __init__(self, rows: range, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rows, self.width = rows, width
        self.table_initializer = initializer()

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Creates the table [rows, D]."""
        # Without autocast: in bfloat16 the whole table would be cast in every call.
        self.table = self.add_weight(
            name="table", shape=(len(self.rows), self.width), autocast=False,
            initializer=self.table_initializer,
        )  # fmt: skip

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        """Maps int32 [B, T] to float32 [B, T, D]."""
        own = (ids >= self.rows.start) & (ids < self.rows.stop)
        x = tf.gather(self.table.value, tf.where(own, ids - self.rows.start, 0))
        return tf.where(own[..., tf.newaxis], x, 0.0)


class Layer(keras.layers.Layer):
    """Self-attention and MLP, each a residual branch (arXiv:1706.03762).

    Args:
        width: D.
        heads: H, which the shards split; the MLP's 4 D columns are split too.
        activation: of the MLP, a key of ACTIVATIONS.
        norm: where to normalise: `pre` before each branch, `post` after each sum.
        rate: of dropout.
        epsilon: of the normalisations.
        shards: devices over which the layer is split.
        update: of the kernels of attention and MLP.
        is_causal: a token does not see those after it (GPT, arXiv:1706.03762, 3.2.3).
    """

    def __init__(
        self, width: int, heads: int, activation: str, norm: Literal["post", "pre"], rate: float,
        epsilon: float, shards: int, update: Update = NO_UPDATE, is_causal: bool = False,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self.norm, self.rate, self.is_causal = norm, rate, is_causal
        self.attention = Sharded(
            lambda own, name: Attention(width, heads, own, rate, update, name=name),
            heads, shards, bias=width, name="attention",
        )  # fmt: skip
        self.attention_normalization = normalization(epsilon, "attention_normalization")
        self.mlp = Sharded(
            lambda columns, name: MLP(width, len(columns), activation, update, name=name),
            4 * width, shards, bias=width, name="mlp",
        )  # fmt: skip
        self.mlp_normalization = normalization(epsilon, "mlp_normalization")

    def build(self, shapes: Any) -> None:
        """Builds the layers inside, for ([B, T, D], [B, T])."""
        for layer in (
            self.attention, self.attention_normalization, self.mlp, self.mlp_normalization
        ):  # fmt: skip
            layer.build(shapes[0])

    def call(self, inputs: Activations, training: bool, seed: tf.Tensor) -> Activations:
        """Maps ([B, T, D], [B, T]) to ([B, T, D], [B, T])."""
        x, mask = inputs
        rows = packing(mask, training, self.is_causal)

        def attend(shard: Attention, y: tf.Tensor) -> tf.Tensor:
            return shard(y, rows=rows, training=training, seed=seed)

        def attention(y: tf.Tensor) -> tf.Tensor:
            return dropout(self.attention(y, work=attend), self.rate, training, seed, 1)

        def mlp(y: tf.Tensor) -> tf.Tensor:
            return dropout(self.mlp(y), self.rate, training, seed, 2)

        x = rows.pack(x)
        if self.norm == "pre":
            x += attention(self.attention_normalization(x))
            x += mlp(self.mlp_normalization(x))
        else:
            x = self.attention_normalization(x + attention(x))
            x = self.mlp_normalization(x + mlp(x))
        return rows.pad(x), mask


class Attention(keras.layers.Layer):
    """The term of some heads in the sum over all: softmax(q k' / sqrt(D / H)) v, projected.

    The columns of `qkv` are the first head's q, k and v, then the second's, and so on.

    Args:
        width: D.
        heads: H, heads of the whole layer.
        own: the heads computed by this shard.
        rate: of dropout.
        update: of the kernels.
    """

    def __init__(
        self, width: int, heads: int, own: range, rate: float, update: Update = NO_UPDATE,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self.heads, self.own, self.rate = heads, own, rate
        self.size = width // heads  # of a head: D / H
        self.qkv = dense(3 * len(own) * self.size, "qkv", update=update)
        self.out = dense(width, "out", use_bias=False, update=update)

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Creates the weights, for [B, T, D]."""
        self.qkv.build(shape)
        self.out.build((*shape[:-1], len(self.own) * self.size))

    def call(self, x: tf.Tensor, rows: Padded, training: bool, seed: tf.Tensor) -> tf.Tensor:
        """Maps rows [..., D] to rows [..., D]."""
        q, k, v = rows.split_heads(self.qkv(x), len(self.own))  # [B, H, T, D / H]
        scores = tf.matmul(q * self.size**-0.5, k, transpose_b=True)  # [B, H, T, T]
        weights = tf.nn.softmax(scores + tf.cast(rows.mask_scores, scores.dtype))
        mixed = tf.matmul(self._drop(weights, training, seed), v)  # [B, H, T, D / H]
        return self.out(rows.join_heads(mixed))

    def _drop(self, weights: tf.Tensor, training: bool, seed: tf.Tensor) -> tf.Tensor:
        if len(self.own) == self.heads or not training or not self.rate:
            return dropout(weights, self.rate, training, seed, 0)
        # Drawn for all heads, so that a head drops the same however the layer is split.
        b, _, t, _ = tf.unstack(tf.shape(weights))
        ones = tf.ones([b, self.heads, t, t], weights.dtype)
        kept = dropout(ones, self.rate, training, seed, 0)
        return weights * kept[:, self.own.start : self.own.stop]


class MLP(keras.layers.Layer):
    """The term of some of the 4 D columns in the MLP's sum over all."""

    def __init__(
        self, width: int, columns: int, activation: str, update: Update = NO_UPDATE, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.activation = ACTIVATIONS[activation]
        self.inner = dense(columns, "inner", update=update)
        self.out = dense(width, "out", use_bias=False, update=update)
        self.columns = columns

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Creates the weights, for [B, T, D]."""
        self.inner.build(shape)
        self.out.build((*shape[:-1], self.columns))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps rows [..., D] to rows [..., D]."""
        return self.out(self.activation(self.inner(x)))


class Head(keras.layers.Layer):
    """Pools a text's tokens into one vector, and classifies it."""

    def __init__(
        self, num_classes: int, width: int, norm: Literal["post", "pre"],
        pooling: Literal["cls", "mean"], rate: float, epsilon: float, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self.norm, self.pooling, self.rate = norm, pooling, rate
        if norm == "pre":
            self.normalization = normalization(epsilon, "normalization")
        if pooling == "cls":
            self.pooler = dense(width, "pooler")
        self.classifier = dense(num_classes, "classifier")

    def call(self, inputs: Activations, training: bool, seed: tf.Tensor) -> tf.Tensor:
        """Maps ([B, T, D], [B, T]) to logits [B, K]."""
        x, mask = inputs
        if self.norm == "pre":
            x = self.normalization(x)
        if self.pooling == "cls":
            x = tf.tanh(self.pooler(x[:, 0]))
        else:
            weights = tf.cast(mask, x.dtype)[:, :, tf.newaxis]
            x = tf.reduce_sum(x * weights, 1) / tf.reduce_sum(weights, 1)
        return self.classifier(dropout(x, self.rate, training, seed, 0))


class TokenHead(keras.layers.Layer):
    """Classifies each of a text's tokens; of a language model, the classes are the words."""

    def __init__(
        self, num_classes: int, width: int, norm: Literal["post", "pre"], rate: float,
        epsilon: float, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self.norm, self.rate = norm, rate
        if norm == "pre":
            self.normalization = normalization(epsilon, "normalization")
        self.classifier = dense(num_classes, "classifier")

    def call(self, inputs: Activations, training: bool, seed: tf.Tensor) -> tf.Tensor:
        """Maps ([B, T, D], [B, T]) to logits [B, T, K]."""
        x, _ = inputs
        if self.norm == "pre":
            x = self.normalization(x)
        return self.classifier(dropout(x, self.rate, training, seed, 0))
