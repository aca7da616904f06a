"""Iterates over a data set that is read by index: order, read, decode, batch.

    training      micro-batch number -> ids (order.py) -> examples -> inputs, targets, ids
    evaluation    range of ids, filled up               -> examples -> inputs, targets, weights

Everything is a function of the micro-batch's number and the seed, so any process can make any
micro-batch. A kind of data (`images.image_set`, `text.text_set`) says how an example is decoded.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from input import Source, labels
from input.batches import Batch, Batches, DataSet
from input.order import Order

MAX_PARALLEL_CALLS = 16  # of a map, as many as TensorFlow uses where it does not tune


class IndexedDataSet(DataSet):
    """A training split and an evaluation split, each read by index.

    Args:
        training: the training split.
        held_out: the evaluation split.
        evaluation_split: its name.

    Attributes:
        decodes_batches: whether `decode` takes the examples of a micro-batch together.
        lengths: of the training examples, to group them by; None: they are not grouped.
    """

    decodes_batches = False

    def __init__(self, training: Source, held_out: Source, evaluation_split: str) -> None:
        self.training, self.held_out = training, held_out
        self.evaluation_split = evaluation_split
        self.classes, self.num_classes = training.classes, len(training.classes)
        self.num_train, self.num_evaluation = len(training), len(held_out)
        self.target_spec = tf.TensorSpec([None, self.num_classes])

    @abstractmethod
    def decode(self, raw: tf.Tensor, key: tf.Tensor | None) -> tf.Tensor:
        """Maps an example, string [], to an input; of `decodes_batches`, string [b] to inputs.

        Args:
            raw: the example as it is stored.
            key: what augmentation may depend on, (seed, place in the training sequence), int64
                [2] or [b, 2]; None in evaluation.
        """

    def mix(
        self, inputs: tf.Tensor, targets: tf.Tensor, key: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Augments a training micro-batch as a whole; the key is (seed, its number), int64 [2]."""
        return inputs, targets

    def check(self, raw: bytes) -> None:
        """Checks each example as it is read; raises ValueError for one that cannot be used."""
        return None

    def diagnose(self, raw: bytes) -> None:
        """Raises ValueError for an example that `decode` fails for."""
        return None

    @property
    def lengths(self) -> np.ndarray | None:
        """See the class."""
        return None

    def ready(self) -> Iterator[None]:
        """See `DataSet`."""
        labels.require_labels(self.held_out, self.evaluation_split)
        return iter(())

    @tf.autograph.experimental.do_not_convert  # nothing needs it, and its search is slow
    def train(
        self, seed: int, micro_batch: int, numbers: Callable[[Any], Any], count: int
    ) -> Batches:
        """See `DataSet`."""
        order = Order(seed, self.num_train, micro_batch, self.lengths)

        def read(number: np.ndarray) -> tuple[np.ndarray, ...]:
            ids = order.examples(int(number))
            return *self._fetch(self.training, ids), ids, order.places(int(number))

        def keys(at: tf.Tensor) -> tf.Tensor:
            return tf.stack([tf.fill(tf.shape(at), tf.cast(seed, tf.int64)), at], -1)

        def decode(raw: tf.Tensor, label: tf.Tensor, i: tf.Tensor, place: tf.Tensor) -> Any:
            return self.decode(raw, keys(place)), label, i, place

        def finish(x: tf.Tensor, label: tf.Tensor, ids: tf.Tensor, places: tf.Tensor) -> Batch:
            targets = tf.one_hot(label, self.num_classes)
            return *self.mix(x, targets, keys(places[0] // micro_batch)), ids

        types = [tf.string, tf.int64, tf.int64, tf.int64]
        dataset = tf.data.Dataset.range(count).map(
            lambda k: numpy_function(read, numbers(k), types, micro_batch), **parallel()
        )
        dataset = self._decoded(dataset, decode, micro_batch).map(finish)
        return self._batches(dataset, self.training, lambda k: order.examples(int(numbers(k))))

    @tf.autograph.experimental.do_not_convert  # nothing needs it, and its search is slow
    def evaluation(self, micro_batch: int, examples: range) -> Batches:
        """See `DataSet`."""
        ids, weights = padded(examples, micro_batch)

        def read(some: np.ndarray) -> tuple[np.ndarray, ...]:
            return self._fetch(self.held_out, some)

        def decode(raw: tf.Tensor, label: tf.Tensor, weight: tf.Tensor) -> Batch:
            return self.decode(raw, None), tf.one_hot(label, self.num_classes), weight

        types = [tf.string, tf.int64]
        dataset = (
            tf.data.Dataset.from_tensor_slices((ids, weights))
            .batch(micro_batch, drop_remainder=True)
            .map(lambda i, w: (*numpy_function(read, i, types, micro_batch), w), **parallel())
        )
        return self._batches(
            self._decoded(dataset, decode, micro_batch),
            self.held_out,
            lambda k: ids[k * micro_batch : (k + 1) * micro_batch],
        )

    def _decoded(
        self, dataset: tf.data.Dataset, decode: Callable[..., Any], micro_batch: int
    ) -> tf.data.Dataset:
        if self.decodes_batches:
            return dataset.map(decode, **parallel())
        dataset = dataset.unbatch().map(decode, **parallel())
        return dataset.batch(micro_batch, drop_remainder=True)

    def _fetch(self, source: Source, ids: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        raws, found = source.fetch(ids)
        for raw, label in zip(raws, found, strict=True):
            self.check(raw)
            labels.check_label(label, self.num_classes)
        return np.array(raws, object), np.array(found, np.int64)

    def _batches(
        self, dataset: tf.data.Dataset, source: Source, ids: Callable[[int], Iterable[int]]
    ) -> Batches:
        def diagnose(example: int) -> None:
            (raw,), _ = self._fetch(source, [example])
            self.diagnose(raw)

        return Batches(dataset.prefetch(2), ids, diagnose, source.name)


def parallel() -> dict[str, Any]:
    """Returns options of a map: on this process's cores, in order.

    Each call holds what it has read, a micro-batch or an example: a machine of many cores must not
    fill its memory with them.
    """
    calls = min(len(os.sched_getaffinity(0)), MAX_PARALLEL_CALLS)
    return {"num_parallel_calls": calls, "deterministic": True}


def padded(examples: range, micro_batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids in whole micro-batches, and weights: 0 where an example is repeated."""
    ids = np.array(examples, np.int64)
    whole = np.resize(ids, -(-len(ids) // micro_batch) * micro_batch) if len(ids) else ids
    return whole, (np.arange(len(whole)) < len(ids)).astype(np.float32)


def numpy_function(
    read: Callable[..., tuple[np.ndarray, ...]], argument: tf.Tensor, types: list[Any], length: int
) -> tuple[tf.Tensor, ...]:
    """Calls Python from the graph; every output is [length]."""
    # Declared stateless, or op determinism would run the reads one after the other.
    outputs = tf.numpy_function(read, [argument], types, stateful=False)
    return tuple(tf.ensure_shape(x, [length]) for x in outputs)
