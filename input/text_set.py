"""Batches of texts: order, source and WordPiece, overlapped with the training step.

An element is one micro-batch, whichever process asks for it:

    inputs   int32 [b, T], ids of WordPieces; 0 pads to the micro-batch's longest text
    targets  float32 [b, K], a row a distribution over the classes
    ids      int64 [b], in training: which examples these are
    weights  float32 [b], in evaluation: 0 where a batch is padded

Texts of like length are in one micro-batch (`order.py`); T depends on the micro-batch's own
texts alone, so it is the same on any layout.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from input import InputError, classes, lengths, packages, paths, sources, text_files
from input.batches import (
    Batch,
    Batches,
    DataSet,
    check_label,
    numpy_function,
    padded,
    parallel,
)  # fmt: skip
from input.order import Order
from input.raw import Limits
from input.sources import Source
from input.text import VOCABULARY, Text
from input.wordpiece import WordPiece

CHUNK = 4096  # texts tokenised at once by `prepare`


def prepare(config: Text, data_dir: str) -> str:
    """Fetches what `TextSet` opens, looks at every text once; returns lines on it.

    Raises:
        InputError: names the text that is empty or not UTF-8.
    """
    lines = [packages.prepare_pretrained(config.vocabulary or VOCABULARY, data_dir)]
    if not config.is_file:
        lines.append(sources.prepare_tfds(config.dataset, data_dir))
    data = TextSet(config, data_dir)
    every = [np.concatenate(list(data.measure(s))) for s in (data.training, data.held_out)]
    lengths.save(data.length_path, every[0])
    for split, found in zip(("training", data.evaluation_split), every, strict=True):
        cut = int((found > config.max_length).sum())
        lines.append(
            f"{split}: {len(found):,} texts of {found.mean():.0f} tokens, the longest "
            f"{found.max()}; {cut} are cut to max_length {config.max_length}"
        )
    splits = {config.train_split: data.training, data.evaluation_split: data.held_out}
    counts = {name: sources.count(source) for name, source in splits.items()}
    lines.append(f"{data.num_classes} classes")
    return "\n".join([*lines, *classes.report(data.classes, counts)])


def open_splits(config: Text, data_dir: str) -> tuple[Source, Source, str]:
    """Returns the training split, the evaluation split and the latter's name."""
    if config.is_file:
        return text_files.open_splits(config)
    builder = sources.prepared(config, data_dir)
    return sources.tfds_splits(config, builder, config.text_field, config.label_field)


class TextSet(DataSet):
    """A prepared set: its training split in the experiment's order, its evaluation split."""

    input_spec = tf.TensorSpec([None, None], tf.int32)
    kind = "text"

    def __init__(self, config: Text, data_dir: str) -> None:
        self.config = config
        folder = packages.pretrained(config.vocabulary or VOCABULARY, data_dir)
        self.wordpiece = WordPiece(folder, config.max_length)
        self.limits = {"vocabulary": self.wordpiece.size, **config.limits}
        self.training, self.held_out, self.evaluation_split = open_splits(config, data_dir)
        self.meaning = {"vocabulary": self.wordpiece.digest}
        self.classes = self.training.classes
        self.num_classes = len(self.classes)
        self.num_train, self.num_evaluation = len(self.training), len(self.held_out)
        which = [config.dataset, config.train_split, config.text_field, str(self.num_train)]
        if isinstance(self.training, text_files.TextFile):  # may change at any time
            which = [self.training.digest]
        which += [self.wordpiece.digest]
        key = hashlib.sha256(json.dumps(which).encode()).hexdigest()[:16]
        kept = paths.of_user(data_dir) / "text_lengths" / f"{key}.npy"
        self.length_path = kept if data_dir else None
        self._lengths: np.ndarray | None = None

    def ready(self) -> Iterator[None]:
        """See `DataSet`: the lengths of the training texts, where `prepare` has not left them."""
        sources.must_have_labels(self.held_out, self.evaluation_split)
        if self._lengths is None:
            self._lengths = yield from lengths.find(
                self.length_path, lambda: self.measure(self.training)
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

    @tf.autograph.experimental.do_not_convert  # there is nothing, and looking for it takes long
    def train(
        self, seed: int, micro_batch: int, numbers: Callable[[Any], Any], count: int
    ) -> Batches:
        """See `DataSet`."""
        order = Order(seed, self.num_train, micro_batch, self.lengths)

        def read(number: np.ndarray) -> tuple[np.ndarray, ...]:
            ids = order.examples(int(number))
            return *self._arrays(self.training, ids), ids

        types = [tf.string, tf.int64, tf.int64]
        dataset = tf.data.Dataset.range(count).map(
            lambda k: self._batch(numpy_function(read, numbers(k), types, micro_batch)),
            **parallel(),
        )
        return self._batches(dataset, self.training, lambda k: order.examples(int(numbers(k))))

    @tf.autograph.experimental.do_not_convert  # there is nothing, and looking for it takes long
    def evaluation(self, micro_batch: int, share: range) -> Batches:
        """See `DataSet`."""
        ids, weights = padded(share, micro_batch)
        types = [tf.string, tf.int64]

        def read(some: np.ndarray) -> tuple[np.ndarray, ...]:
            return self._arrays(self.held_out, some)

        dataset = (
            tf.data.Dataset.from_tensor_slices((ids, weights))
            .batch(micro_batch, drop_remainder=True)
            .map(
                lambda i, w: self._batch((*numpy_function(read, i, types, micro_batch), w)),
                **parallel(),
            )
        )
        return self._batches(
            dataset, self.held_out, lambda k: ids[k * micro_batch : (k + 1) * micro_batch]
        )

    def preprocess(self, raw: tf.Tensor, limits: Limits) -> tf.Tensor:
        """See `DataSet`; longer texts are cut to `max_length` tokens."""
        told = f"a text has more than {limits.text} bytes"
        check = tf.debugging.assert_less_equal(tf.strings.length(raw), limits.text, told)
        with tf.control_dependencies([check] if check is not None else []):
            return self.wordpiece(tf.identity(raw))

    def measure(self, source: Source) -> Iterator[np.ndarray]:
        """Tokens of every text of a split, uncut, int64 [n] of some at a time.

        Raises:
            InputError: names the text that is empty or not UTF-8.
        """
        for start in range(0, len(source), CHUNK):
            ids = range(start, min(start + CHUNK, len(source)))
            texts, labels = source.fetch(ids)
            for i, text, label in zip(ids, texts, labels, strict=True):
                try:
                    _check(text, label, self.num_classes)
                except ValueError as error:
                    raise InputError(f"{source.name(i)}: {error}.") from None
            yield self.wordpiece.lengths(tf.constant(texts)).numpy()

    def must_suit(self, weights: Path) -> None:
        """See `DataSet`."""
        self.wordpiece.vocabulary.must_be_that_of(weights)

    def baseline(self) -> dict[str, Any] | None:
        """TF-IDF and logistic regression on the same splits, if it is wanted."""
        from input import baseline

        if not self.config.has_baseline:
            return None
        return baseline.tf_idf(self.training, self.held_out)

    def _arrays(self, source: Source, ids: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        texts, labels = source.fetch(ids)
        for text, label in zip(texts, labels, strict=True):
            _check(text, label, self.num_classes)
        return np.array(texts, object), np.array(labels, np.int64)

    def _batch(self, element: tuple[tf.Tensor, ...]) -> Batch:
        texts, labels, ids_or_weights = element
        return self.wordpiece(texts), tf.one_hot(labels, self.num_classes), ids_or_weights

    def _batches(
        self, dataset: tf.data.Dataset, source: Source, ids: Callable[[int], Iterable[int]]
    ) -> Batches:
        def check(example: int) -> None:
            texts, labels = source.fetch([example])
            _check(texts[0], labels[0], self.num_classes)

        return Batches(dataset.prefetch(2), ids, check, source.name)


def _check(text: bytes, label: int, num_classes: int) -> None:
    """Raises ValueError with what is wrong with an example."""
    if not text.decode().strip():
        raise ValueError("the text is empty")
    check_label(label, num_classes)
