"""Makes batches of texts.

    inputs   int32 [b, T], ids of WordPieces; 0 pads to the micro-batch's longest text
    targets  float32 [b, K], a row a distribution over the classes
    ids      int64 [b], in training: which examples these are
    weights  float32 [b], in evaluation: 0 where a batch is filled up

Texts of similar length are in one micro-batch (`order.py`). T depends only on the micro-batch's own
texts, so it is the same on any layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from input import InputError, baselines, labels
from input.indexed import IndexedDataSet
from input.raw import Limits
from input.source import Source
from input.text import lengths
from input.text.wordpiece import WordPiece

CHUNK = 4096  # texts tokenised at once to find their lengths


class TextSet(IndexedDataSet):
    """A prepared set of texts.

    Args:
        training: the training split.
        held_out: the evaluation split.
        evaluation_split: its name.
        wordpiece: makes ids of texts.
        about: what identifies the training texts, for their stored lengths.
        data_dir: below which lengths are stored; "": nowhere.
        has_baseline: whether `baseline` trains one.
    """

    kind = "text"

    def __init__(
        self, training: Source, held_out: Source, evaluation_split: str, wordpiece: WordPiece,
        about: Sequence[str], data_dir: str, has_baseline: bool,
    ) -> None:  # fmt: skip
        super().__init__(training, held_out, evaluation_split)
        self.input_spec = tf.TensorSpec([None, None], tf.int32)
        self.wordpiece, self.has_baseline = wordpiece, has_baseline
        self.limits = {"vocabulary": wordpiece.size, "positions": wordpiece.max_length}
        self.meaning = {"vocabulary": wordpiece.digest}
        self.lengths_path = lengths.path_of([*about, wordpiece.digest], data_dir)
        self._lengths: np.ndarray | None = None

    def ready(self) -> Iterator[None]:
        """See `DataSet`: finds the lengths of the training texts, if `prepare` did not."""
        yield from super().ready()
        if self._lengths is None:
            self._lengths = yield from lengths.find(
                self.lengths_path, lambda: self.measure(self.training)
            )

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each training text, uncut, int64 [N]."""
        for _ in self.ready():
            pass
        assert self._lengths is not None
        return self._lengths

    @property
    def digest(self) -> str:  # type: ignore[override]
        """See `DataSet`."""
        return hashlib.sha256(self.lengths.tobytes()).hexdigest()

    def decode(self, raw: tf.Tensor, key: tf.Tensor | None) -> tf.Tensor:
        """See `IndexedDataSet`."""
        return self.wordpiece(raw)

    def check(self, raw: bytes) -> None:
        """See `IndexedDataSet`: refuses texts that are empty or not UTF-8."""
        if not raw.decode().strip():
            raise ValueError("the text is empty")

    def preprocess(self, raw: tf.Tensor, limits: Limits) -> tf.Tensor:
        """See `DataSet`; longer texts are cut to `max_length` tokens."""
        message = f"a text has more than {limits.text} bytes"
        check = tf.debugging.assert_less_equal(tf.strings.length(raw), limits.text, message)
        with tf.control_dependencies([check] if check is not None else []):
            return self.wordpiece(tf.identity(raw))

    def measure(self, source: Source) -> Iterator[np.ndarray]:
        """Yields the tokens of every text of a split, uncut, int64 [n] at a time.

        Raises:
            InputError: names the text that is empty or not UTF-8.
        """
        for start in range(0, len(source), CHUNK):
            ids = range(start, min(start + CHUNK, len(source)))
            texts, found = source.fetch(ids)
            for i, text, label in zip(ids, texts, found, strict=True):
                try:
                    self.check(text)
                    if self.targets.meaning == "class":
                        labels.check_label(label, self.num_classes)
                except ValueError as error:
                    raise InputError(f"{source.name(i)}: {error}.") from None
            yield self.wordpiece.lengths(tf.constant(texts)).numpy()

    def store_lengths(self) -> Iterator[str]:
        """Reads every text, and stores the training texts' lengths; yields a line on each split."""
        splits = {"training": self.training, self.evaluation_split: self.held_out}
        for split, source in splits.items():
            found = np.concatenate(list(self.measure(source)))
            if source is self.training:
                lengths.save(self.lengths_path, found)
            most = self.wordpiece.max_length
            yield (
                f"{split}: {len(found):,} texts of {found.mean():.0f} tokens, the longest "
                f"{found.max()}; {(found > most).sum()} are cut to max_length {most}"
            )

    def must_suit(self, weights: Path) -> None:
        """See `DataSet`."""
        self.wordpiece.vocabulary.check_weights(weights)

    def baseline(self) -> dict[str, Any] | None:
        """See `DataSet`: a linear model on TF-IDF."""
        kinds = {"class": False, "numbers": True}
        if not self.has_baseline or self.targets.meaning not in kinds:
            return None
        return baselines.of_texts(self.training, self.held_out, kinds[self.targets.meaning])
