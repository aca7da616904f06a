"""Makes batches of texts whose targets are of their tokens: what a text teaches without labels.

inputs   int32 [b, T], ids of WordPieces, 0 where padded
targets  int32 [b, T], -1: a token that does not count

next     inputs    [CLS] it   was  good [SEP]      each token's target is the one after it
targets   it    was  good [SEP]  -1

masked   inputs    [CLS] it  [MASK] good [SEP]     a few are hidden, and are the targets
targets   -1    -1   was   -1    -1

case     inputs    [CLS] it   was  good [SEP]      of the text "It was GOOD"
targets   -1     1    0    2    -1        0 lower, 1 Capitalised, 2 UPPER
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from input import InputError, baselines
from input.source import Source
from input.text.text_set import CHUNK, TextSet
from input.text.vocabulary import END, START

MASK = "[MASK]"
SHARE = 0.15  # of the tokens that are hidden (BERT, arXiv:1810.04805, 3.1)
NONE = -1  # as a target: not counted
HASH = 1_000_003  # a prime, for a number that depends on the order of ids


class TokenSet(TextSet):
    """A prepared set of texts, with targets of tokens; the texts' labels are not used."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.target_spec = tf.TensorSpec([None, None], tf.int32)
        self.classes, self.num_classes = self.names(), self.count()
        self.special = [self._place(START), self._place(END)]

    def names(self) -> tuple[str, ...]:
        """Returns the names of the classes, if they have any beside their numbers."""
        return ()

    def count(self) -> int:
        """Returns the number of classes: by default, of words."""
        return self.wordpiece.size

    def pair(self, decoded: Any, targets: Any) -> tuple[Any, Any]:
        """See `IndexedDataSet`: `decode` returns both."""
        inputs, found = decoded
        return inputs, found

    def baseline(self) -> dict[str, Any] | None:
        """See `DataSet`."""
        return None

    def rows(self, source: Source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields ids and targets of a split, [b, T] each, in its own order."""
        for start in range(0, min(len(source), baselines.MOST), CHUNK):
            ids = range(start, min(start + CHUNK, len(source)))
            inputs, targets = self.decode(tf.constant(source.fetch(ids)[0]), None)
            yield inputs.numpy(), targets.numpy()

    def _place(self, word: str) -> int:
        words = self.wordpiece.vocabulary.words
        if word not in words:
            raise InputError(
                f"{self.wordpiece.vocabulary.path} has no {word}, which masked words need: take "
                "another vocabulary, or data.predicts=next."
            )
        return words.index(word)

    def _is_word(self, ids: tf.Tensor) -> tf.Tensor:
        start, end = self.special
        return (ids != 0) & (ids != start) & (ids != end)


class NextWords(TokenSet):
    """Each token's target is the token after it; the last, [SEP], has none."""

    is_of_next_words = True  # so that a model of them can continue texts

    def decode(self, raw: tf.Tensor, key: tf.Tensor | None) -> Any:
        """See `IndexedDataSet`; returns inputs and targets."""
        ids = self.wordpiece(raw)
        after = tf.pad(ids[:, 1:], [[0, 0], [0, 1]])
        return ids, tf.where(after != 0, after, NONE)

    def baseline(self) -> dict[str, Any] | None:
        """See `DataSet`: pairs of words."""
        if not self.has_baseline:
            return None
        return baselines.of_next_words(
            lambda: self.rows(self.training), lambda: self.rows(self.held_out), self.num_classes
        )


class MaskedWords(TokenSet):
    """Hides 15 % of the words: four fifths as [MASK], a tenth as another word, a tenth not at all.

    In training they are a function of the seed and the text's place in the sequence of examples,
    so an epoch hides others than the one before; in evaluation, of the text.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.mask = self._place(MASK)

    def decode(self, raw: tf.Tensor, key: tf.Tensor | None) -> Any:
        """See `IndexedDataSet`; returns inputs and targets."""
        ids = self.wordpiece(raw)
        if key is None:
            places = tf.range(tf.shape(ids, tf.int64)[1])
            numbers = tf.reduce_sum(tf.cast(ids, tf.int64) * (places * HASH + 1), -1)
            key = tf.stack([tf.zeros_like(numbers), numbers], -1)

        def draw(one: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            one = tf.cast(one, tf.int32)
            keys = [tf.random.experimental.stateless_fold_in(one, i) for i in range(3)]
            length = [tf.shape(ids)[1]]
            words = tf.random.stateless_uniform(
                length, keys[2], len(self.special), self.wordpiece.size, tf.int32
            )
            first, second = (tf.random.stateless_uniform(length, k) for k in keys[:2])
            return first, second, words

        spec = (tf.float32, tf.float32, tf.int32)
        chosen, how, others = tf.map_fn(draw, key, fn_output_signature=spec)
        is_hidden = self._is_word(ids) & (chosen < SHARE)
        shown = tf.where(how < 0.8, self.mask, tf.where(how < 0.9, others, ids))
        return tf.where(is_hidden, shown, ids), tf.where(is_hidden, ids, NONE)


class Case(TokenSet):
    """Restores the case of letters: of each word, whether it was lower, Capitalised or UPPER."""

    def names(self) -> tuple[str, ...]:
        """See base class."""
        return ("lower", "Capitalised", "UPPER")

    def count(self) -> int:
        """See base class."""
        return len(self.names())

    def decode(self, raw: tf.Tensor, key: tf.Tensor | None) -> Any:
        """See `IndexedDataSet`; returns inputs and targets."""
        ids = self.wordpiece(raw)
        words = tf.strings.split(raw)
        flat = words.flat_values
        letters = tf.strings.regex_replace(flat, r"\P{L}", "")
        is_upper = tf.strings.regex_full_match(letters, r"\p{Lu}{2,}")
        is_capital = tf.strings.regex_full_match(letters, r"\p{Lu}.*")
        kind = tf.where(is_upper, 2, tf.where(is_capital, 1, 0))
        kind = tf.where(letters == "", NONE, kind)
        pieces = self.wordpiece.pieces(flat).row_lengths()
        of_pieces = tf.RaggedTensor.from_row_lengths(tf.repeat(kind, pieces), pieces)
        targets = words.with_flat_values(of_pieces).merge_dims(1, 2)[
            :, : self.wordpiece.max_length - 2
        ]
        edge = tf.fill([tf.shape(ids)[0], 1], NONE)
        shape = tf.stack([-1, tf.shape(ids)[1]])
        whole = tf.concat([edge, targets, edge], 1).to_tensor(NONE, shape=shape)
        return ids, tf.ensure_shape(tf.where(self._is_word(ids), whole, NONE), [None, None])

    def baseline(self) -> dict[str, Any] | None:
        """See `DataSet`: the case that each word mostly has."""
        if not self.has_baseline:
            return None
        return baselines.of_case(
            lambda: self.rows(self.training), lambda: self.rows(self.held_out), self.num_classes
        )


KINDS = {"next": NextWords, "masked": MaskedWords, "case": Case}
