"""Batches of images: order, source and pixels, overlapped with the training step.

An element is one micro-batch, whichever process asks for it:

    inputs   float32 [b, size, size, 3]
    targets  float32 [b, K], a row a distribution over the classes
    ids      int64 [b], in training: which examples these are
    weights  float32 [b], in evaluation: 0 where a batch is padded
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from input import decoding, pixels, sources
from input.batches import (
    Batch,
    Batches,
    DataSet,
    check_label,
    numpy_function,
    padded,
    parallel,
)  # fmt: skip
from input.images import Images
from input.order import Order
from input.raw import Limits
from input.sources import Source


class ImageSet(DataSet):
    """A prepared set: its training split in the experiment's order, its evaluation split."""

    kind = "image"

    def __init__(
        self, config: Images, train: Source, evaluation: Source, evaluation_split: str
    ) -> None:
        self.config, self.evaluation_split = config, evaluation_split
        self.training, self.held_out = train, evaluation
        self.meaning = {"decoder": decoding.VERSION}
        self.classes, self.num_classes = train.classes, len(train.classes)
        self.num_train, self.num_evaluation = len(train), len(evaluation)
        self.input_spec = tf.TensorSpec([None, config.size, config.size, 3])

    def ready(self) -> Iterator[None]:
        """See `DataSet`."""
        sources.must_have_labels(self.held_out, self.evaluation_split)
        return iter(())

    @tf.autograph.experimental.do_not_convert  # there is nothing, and looking for it takes long
    def train(
        self, seed: int, micro_batch: int, numbers: Callable[[Any], Any], count: int
    ) -> Batches:
        """See `DataSet`."""
        order = Order(seed, self.num_train, micro_batch)

        def read(number: np.ndarray) -> tuple[np.ndarray, ...]:
            n = int(number)
            ids = order.examples(n)
            return *self._arrays(self.training, ids), ids, order.places(n)

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
        ks = tf.data.Dataset.range(count)
        dataset = (
            ks.map(lambda k: numpy_function(read, numbers(k), types, micro_batch), **parallel())
            .unbatch()
            .map(example, **parallel())
            .batch(micro_batch, drop_remainder=True)
        )
        dataset = tf.data.Dataset.zip(dataset, ks).map(
            lambda batch, k: finish(batch[0], batch[1], batch[2], k)
        )
        return self._batches(dataset, self.training, lambda k: order.examples(int(numbers(k))))

    @tf.autograph.experimental.do_not_convert  # there is nothing, and looking for it takes long
    def evaluation(self, micro_batch: int, share: range) -> Batches:
        """See `DataSet`."""
        ids, weights = padded(share, micro_batch)

        def read(some: np.ndarray) -> tuple[np.ndarray, ...]:
            return self._arrays(self.held_out, some)

        def example(encoded: tf.Tensor, label: tf.Tensor, weight: tf.Tensor) -> Batch:
            image = pixels.evaluation(self.config, encoded)
            return image, tf.one_hot(label, self.num_classes), weight

        types = [tf.string, tf.int64]
        dataset = (
            tf.data.Dataset.from_tensor_slices((ids, weights))
            .batch(micro_batch, drop_remainder=True)
            .map(lambda i, w: (*numpy_function(read, i, types, micro_batch), w), **parallel())
            .unbatch()
            .map(example, **parallel())
            .batch(micro_batch, drop_remainder=True)
        )
        return self._batches(
            dataset, self.held_out, lambda k: ids[k * micro_batch : (k + 1) * micro_batch]
        )

    def preprocess(self, raw: tf.Tensor, limits: Limits) -> tf.Tensor:
        """See `DataSet`."""

        def example(encoded: tf.Tensor) -> tf.Tensor:
            return pixels.evaluation(self.config, encoded, limits.pixels)

        return tf.map_fn(example, raw, fn_output_signature=self._one)

    def preprocess_arrays(self, images: tf.Tensor) -> tf.Tensor:
        """Decoded images, uint8 [b, H, W, 3], to inputs."""

        def example(image: tf.Tensor) -> tf.Tensor:
            return pixels.evaluation_of_array(self.config, image)

        return tf.map_fn(example, images, fn_output_signature=self._one)

    @property
    def _one(self) -> tf.TensorSpec:
        return tf.TensorSpec(self.input_spec.shape[1:])

    def _arrays(self, source: Source, ids: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        images, labels = source.fetch(ids)
        for label in labels:
            check_label(label, self.num_classes)
        return np.array(images, object), np.array(labels, np.int64)

    def _batches(
        self, dataset: tf.data.Dataset, source: Source, ids: Callable[[int], Iterable[int]]
    ) -> Batches:
        def check(example: int) -> None:
            images, _ = self._arrays(source, [example])
            if fault := decoding.image_fault(images[0]):
                raise ValueError(fault)

        return Batches(dataset.prefetch(2), ids, check, source.name)


def mixup(
    images: tf.Tensor, targets: tf.Tensor, alpha: float, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes each example with its mirror place, by one share ~ Beta(alpha, alpha)."""
    a, b = tf.unstack(tf.random.stateless_gamma([2], seed, alpha))
    share = a / (a + b)
    mixed = [share * x + (1 - share) * tf.reverse(x, [0]) for x in (images, targets)]
    return mixed[0], mixed[1]
