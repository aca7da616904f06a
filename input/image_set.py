"""Batches of images: order, source and pixels, overlapped with the training step.

An element is one micro-batch, whichever process asks for it:

    inputs   float32 [b, size, size, 3]
    targets  float32 [b, K], a row a distribution over the classes
    ids      int64 [b], in training: which examples these are
    weights  float32 [b], in evaluation: 0 where a batch is padded
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from input import pixels
from input.batches import Batch, Batches, DataSet, numpy_function, padded
from input.images import Images
from input.order import Order
from input.sources import Source


class ImageSet(DataSet):
    """A prepared set: its training split in the experiment's order, its evaluation split."""

    def __init__(
        self, config: Images, train: Source, evaluation: Source, evaluation_split: str
    ) -> None:
        self.config, self.evaluation_split = config, evaluation_split
        self._train, self._evaluation = train, evaluation
        self.num_classes = train.num_classes
        self.num_train, self.num_evaluation = len(train), len(evaluation)
        self.input_spec = tf.TensorSpec([None, config.size, config.size, 3])

    def train(
        self, seed: int, micro_batch: int, numbers: Callable[[Any], Any], count: int
    ) -> Batches:
        """See `DataSet`."""
        order = Order(seed, self.num_train, micro_batch)

        def read(number: np.ndarray) -> tuple[np.ndarray, ...]:
            n = int(number)
            ids = order.examples(n)
            images, labels = self._train.fetch(ids)
            return np.array(images, object), np.array(labels, np.int64), ids, order.places(n)

        def example(encoded: tf.Tensor, label: tf.Tensor, i: tf.Tensor, place: tf.Tensor) -> Any:
            key = tf.stack([tf.cast(seed, tf.int64), place])
            return pixels.training(self.config, encoded, key), label, i

        def finish(images: tf.Tensor, labels: tf.Tensor, ids: tf.Tensor, k: tf.Tensor) -> Batch:
            targets = tf.one_hot(labels, self.num_classes)
            if self.config.mixup:
                key = tf.stack([tf.cast(seed, tf.int64), numbers(k)])
                images, targets = mixup(images, targets, self.config.mixup, key)
            return images, targets, ids

        types = [tf.string, tf.int64, tf.int64, tf.int64]
        parallel = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
        ks = tf.data.Dataset.range(count)
        dataset = (
            ks.map(lambda k: numpy_function(read, numbers(k), types, micro_batch), **parallel)
            .unbatch()
            .map(example, **parallel)
            .batch(micro_batch, drop_remainder=True)
        )
        dataset = tf.data.Dataset.zip(dataset, ks).map(
            lambda batch, k: finish(batch[0], batch[1], batch[2], k)
        )
        return self._batches(dataset, self._train, lambda k: order.examples(int(numbers(k))))

    def evaluation(self, micro_batch: int, share: range) -> Batches:
        """See `DataSet`."""
        ids, weights = padded(share, micro_batch)

        def read(some: np.ndarray) -> tuple[np.ndarray, ...]:
            images, labels = self._evaluation.fetch(some)
            return np.array(images, object), np.array(labels, np.int64)

        def example(encoded: tf.Tensor, label: tf.Tensor, weight: tf.Tensor) -> Batch:
            image = pixels.evaluation(self.config, encoded)
            return image, tf.one_hot(label, self.num_classes), weight

        parallel = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
        types = [tf.string, tf.int64]
        dataset = (
            tf.data.Dataset.from_tensor_slices((ids, weights))
            .batch(micro_batch, drop_remainder=True)
            .map(lambda i, w: (*numpy_function(read, i, types, micro_batch), w), **parallel)
            .unbatch()
            .map(example, **parallel)
            .batch(micro_batch, drop_remainder=True)
        )
        return self._batches(
            dataset, self._evaluation, lambda k: ids[k * micro_batch : (k + 1) * micro_batch]
        )

    @staticmethod
    def _batches(
        dataset: tf.data.Dataset, source: Source, ids: Callable[[int], Iterable[int]]
    ) -> Batches:
        def decode(example: int) -> None:
            images, _ = source.fetch([example])
            pixels.decode(tf.constant(images[0]))

        return Batches(dataset.prefetch(2), ids, decode, source.name)


def mixup(
    images: tf.Tensor, targets: tf.Tensor, alpha: float, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes each example with its mirror place, by one share ~ Beta(alpha, alpha)."""
    a, b = tf.unstack(tf.random.stateless_gamma([2], seed, alpha))
    share = a / (a + b)
    mixed = [share * x + (1 - share) * tf.reverse(x, [0]) for x in (images, targets)]
    return mixed[0], mixed[1]
