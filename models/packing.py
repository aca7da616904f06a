"""Leaves padded places out of what is computed row by row.

The texts of a batch differ in length, and in what is computed row by row (projections, MLP,
normalisation) a padded place costs as much as a token. Only attention needs to know which tokens
belong to one text. So outside training the tokens are packed, and are put into their places for
attention only (arXiv:2210.03052):

    [B, T, D]   a b c .    pack    [N, D]   a b c d e    split_heads    [B, H, T, s]   a b c c
                d e . .   ------>                       ------------->                 d e e e

In training they stay padded: the gradient of `gather` is a scattered sum, which a GPU does in no
fixed order.

B  texts   T  tokens of the longest   N  tokens of all   D  width   H  heads   s  size of a head
"""

from __future__ import annotations

import tensorflow as tf

MASKED = -30000.0  # added to a score so that its weight is 0; float16 holds it too


class Padded:
    """Computes all places.

    `mask_scores` is added to attention's scores, [B, 1, 1, T], or [B, 1, T, T] if it is causal: a
    token does not see those after it.
    """

    def __init__(self, mask: tf.Tensor, is_causal: bool = False) -> None:  # bool [B, T]
        self.shape = tf.unstack(tf.shape(mask))
        self.mask_scores = tf.where(mask, 0.0, MASKED)[:, tf.newaxis, tf.newaxis, :]
        if is_causal:
            place = tf.range(self.shape[1])
            self.mask_scores += tf.where(place[tf.newaxis, :] > place[:, tf.newaxis], MASKED, 0.0)

    def pack(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the rows to compute of [B, T, D]: all of them, as they are."""
        return x

    def pad(self, x: tf.Tensor) -> tf.Tensor:
        """Undoes `pack`."""
        return x

    def split_heads(self, qkv: tf.Tensor, heads: int) -> list[tf.Tensor]:
        """Maps rows [..., H 3 s] to queries, keys and values, each [B, H, T, s]."""
        size = qkv.shape[-1] // (3 * heads)
        qkv = tf.reshape(qkv, [*self.shape, heads, 3, size])
        return tf.unstack(tf.transpose(qkv, [3, 0, 2, 1, 4]))

    def join_heads(self, mixed: tf.Tensor) -> tf.Tensor:
        """Maps [B, H, T, s] to rows [..., H s]."""
        _, heads, _, size = mixed.shape
        return tf.reshape(tf.transpose(mixed, [0, 2, 1, 3]), [*self.shape, heads * size])


class Packed(Padded):
    """Computes only the tokens, rows [N, D]. A padded place gets a copy of the token before it."""

    def __init__(self, mask: tf.Tensor, is_causal: bool = False) -> None:
        super().__init__(mask, is_causal)
        is_first = tf.range(self.shape[1]) == 0  # a text without a token has a row too
        kept = tf.reshape(mask | is_first, [-1])
        self._rows = tf.reshape(tf.where(kept), [-1])  # [N]
        self._places = tf.reshape(tf.cumsum(tf.cast(kept, tf.int64)) - 1, self.shape)  # [B, T]

    def pack(self, x: tf.Tensor) -> tf.Tensor:
        """Maps [B, T, D] to [N, D]."""
        return tf.gather(tf.reshape(x, [-1, x.shape[-1]]), self._rows)

    def pad(self, x: tf.Tensor) -> tf.Tensor:
        """Maps [N, D] to [B, T, D]."""
        return tf.gather(x, self._places)

    def split_heads(self, qkv: tf.Tensor, heads: int) -> list[tf.Tensor]:
        """See the base class; the gather also transposes."""
        own = tf.range(heads, dtype=tf.int64)[:, tf.newaxis]
        places = self._places[:, tf.newaxis, :] * heads + own  # [B, H, T]
        qkv = tf.gather(tf.reshape(qkv, [-1, qkv.shape[-1] // heads]), places)
        return tf.split(qkv, 3, axis=-1)

    def join_heads(self, mixed: tf.Tensor) -> tf.Tensor:
        """See the base class."""
        _, heads, _, size = mixed.shape
        length = tf.cast(self.shape[1], tf.int64)
        text, place = self._rows // length, self._rows % length
        own = tf.range(heads, dtype=tf.int64)
        places = (text[:, tf.newaxis] * heads + own) * length + place[:, tf.newaxis]  # [N, H]
        mixed = tf.gather(tf.reshape(mixed, [-1, size]), places)
        return tf.reshape(mixed, [-1, heads * size])


def packing(mask: tf.Tensor, training: bool, is_causal: bool = False) -> Padded:
    """Returns how to compute a batch; a single text (LiteRT's) has nothing to leave out."""
    kind = Padded if training or mask.shape[0] == 1 else Packed
    return kind(mask, is_causal)
