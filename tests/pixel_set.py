"""Decodes the images of pixels.py: TensorFlow is imported."""

from __future__ import annotations

import tensorflow as tf

from input.images.image_set import ImageSet


class PixelSet(ImageSet):
    """Files that are JPEG images without metadata, and of the model's size."""

    def decode(self, raw: tf.Tensor, key: tf.Tensor | None) -> tf.Tensor:
        image = tf.ensure_shape(tf.io.decode_jpeg(raw, 3), self.input_spec.shape[1:])
        image = tf.cast(image, tf.float32)
        if key is None:
            return self.preprocessing.normalise(image)
        return self.preprocessing.augmented(image, key)
