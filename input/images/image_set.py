"""Makes batches of images.

inputs   float32 [b, size, size, 3]
targets  float32 [b, K], a row a distribution over the classes
ids      int64 [b], in training: which examples these are
weights  float32 [b], in evaluation: 0 where a batch is filled up
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from input.images import decoding
from input.images.preprocessing import Preprocessing
from input.indexed import IndexedDataSet
from input.raw import Limits
from input.source import Encoded, Ids, Source


class ImageSet(IndexedDataSet):
    """A prepared set of images.

    Args:
        training: the training split.
        held_out: the evaluation split.
        evaluation_split: its name.
        preprocessing: makes inputs of images.
        mixup: alpha of `mixup`; 0: images are not mixed.
    """

    kind = "image"
    decodes_batches = False

    def __init__(
        self, training: Source, held_out: Source, evaluation_split: str,
        preprocessing: Preprocessing, mixup: float,
    ) -> None:  # fmt: skip
        super().__init__(training, held_out, evaluation_split)
        self.preprocessing, self.mixup = preprocessing, mixup
        self.meaning = {"decoder": decoding.VERSION}
        self.input_spec = tf.TensorSpec([None, preprocessing.size, preprocessing.size, 3])

    def decode(self, raw: tf.Tensor, key: tf.Tensor | None) -> tf.Tensor:
        """See `IndexedDataSet`."""
        if key is None:
            return self.preprocessing.evaluation(raw)
        return self.preprocessing.training(raw, key)

    def mix(
        self, inputs: tf.Tensor, targets: tf.Tensor, key: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """See `IndexedDataSet`."""
        return mixup(inputs, targets, self.mixup, key) if self.mixup else (inputs, targets)

    def diagnose(self, raw: bytes) -> None:
        """See `IndexedDataSet`."""
        if fault := decoding.image_fault(raw):
            raise ValueError(fault)

    def preprocess(self, raw: tf.Tensor, limits: Limits) -> tf.Tensor:
        """See `DataSet`."""

        def example(encoded: tf.Tensor) -> tf.Tensor:
            return self.preprocessing.evaluation(encoded, limits.pixels)

        return tf.map_fn(example, raw, fn_output_signature=self._example_spec)

    def preprocess_arrays(self, images: tf.Tensor) -> tf.Tensor:
        """Maps decoded images, uint8 [b, H, W, 3], to inputs as in evaluation."""
        evaluation = self.preprocessing.evaluation_of_array
        return tf.map_fn(evaluation, images, fn_output_signature=self._example_spec)

    @property
    def _example_spec(self) -> tf.TensorSpec:
        return tf.TensorSpec(self.input_spec.shape[1:])


class Synthetic(Encoded):
    """A split of a few random JPEG images, repeated: no files, but the cost of real decoding."""

    def __init__(self, num_examples: int, num_classes: int) -> None:
        self.num_examples = num_examples
        self.classes = tuple(map(str, range(num_classes)))
        rows = np.random.default_rng(0).integers(0, 256, [16, 32, 32, 3], np.uint8)
        large = np.repeat(np.repeat(rows, 8, axis=1), 8, axis=2)
        self.images = [tf.io.encode_jpeg(image).numpy() for image in large]

    def __len__(self) -> int:
        return self.num_examples

    def fetch(self, ids: Ids) -> tuple[list[bytes], list[int]]:
        """Returns examples: example i is image i mod 16, of class i mod num_classes."""
        return [self.images[i % 16] for i in ids], [int(i) % len(self.classes) for i in ids]

    def name(self, example: int) -> str:
        """Returns the example's id, for messages."""
        return f"synthetic example {example}"


def mixup(
    images: tf.Tensor, targets: tf.Tensor, alpha: float, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes example i with example b - 1 - i (arXiv:1710.09412).

    The weight of example i is the same for the whole micro-batch, from Beta(alpha, alpha).
    """
    a, b = tf.unstack(tf.random.stateless_gamma([2], seed, alpha))
    weight = a / (a + b)
    mixed = [weight * x + (1 - weight) * tf.reverse(x, [0]) for x in (images, targets)]
    return mixed[0], mixed[1]
