"""Makes inputs of encoded images: decode, crop, resize, augment, normalise.

Every random choice is stateless, keyed by the example's place in the training sequence, so the
result does not depend on the process or thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from input.images import decoding
from input.images.augmentations import Augmentation

FIRST = 16  # folded into the seed for the first of `more`: smaller numbers are of what has a name


@dataclass(frozen=True)
class Preprocessing:
    """From an encoded image to the model's input.

    Attributes:
        size: pixels of a side of the input.
        augmentation: of training images; see `input.images.Images`.
        mean, std: of each channel, of values in [0, 1].
        more: what else is done to training images, in order, before they are normalised.
    """

    size: int
    augmentation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    more: tuple[Augmentation, ...] = ()

    def training(self, encoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns an augmented training input, float32 [size, size, 3]; seed is int64 [2]."""
        crops = self.augmentation == "imagenet"
        image = random_crop(encoded, seed) if crops else decode(encoded)
        return self.augmented(resize(image, self.size), seed)

    def augmented(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns the training input of an image of the right size, float32 [size, size, 3]."""
        if self.augmentation in ("shift", "shift_flip"):
            margin = self.size // 8
            image = tf.pad(image, [[margin, margin], [margin, margin], [0, 0]])
            image = tf.image.stateless_random_crop(image, [self.size, self.size, 3], seed)
        if self.augmentation in ("shift_flip", "imagenet"):
            flip_seed = tf.random.experimental.stateless_fold_in(seed, 1)
            image = tf.image.stateless_random_flip_left_right(image, flip_seed)
        for place, augmentation in enumerate(self.more):
            key = tf.random.experimental.stateless_fold_in(seed, FIRST + place)
            changed = tf.convert_to_tensor(augmentation(image, key), tf.float32)
            image = tf.ensure_shape(changed, [self.size, self.size, 3])
        return self.normalise(image)

    def evaluation(self, encoded: tf.Tensor, max_pixels: int | None = None) -> tf.Tensor:
        """Returns an evaluation input, float32 [size, size, 3].

        `imagenet` takes the standard centre crop: of the largest square, size / (size + 32)
        (224 of 256 at the usual size); others keep the whole image. In the graph it fails for an
        image of more than `max_pixels`.
        """
        header = decoding.read_header(encoded, max_pixels)
        window = self.centre_crop(header.size) if self.augmentation == "imagenet" else None
        return self.normalise(resize(decoding.image(header, window), self.size))

    def evaluation_of_array(self, image: tf.Tensor) -> tf.Tensor:
        """Returns the evaluation input of a decoded image, uint8 [H, W, 3]."""
        if self.augmentation == "imagenet":
            window = self.centre_crop(tf.shape(image))
            image = tf.image.crop_to_bounding_box(image, *tf.unstack(window))
        return self.normalise(resize(image, self.size))

    def centre_crop(self, shape: tf.Tensor) -> tf.Tensor:
        """Returns [top, left, height, width] for an image of this height and width."""
        side = tf.cast(tf.minimum(shape[0], shape[1]), tf.float32)
        side = tf.cast(tf.round(side * self.size / (self.size + 32)), tf.int32)
        return tf.stack([(shape[0] - side) // 2, (shape[1] - side) // 2, side, side])

    def normalise(self, image: tf.Tensor) -> tf.Tensor:
        """Maps values in [0, 255] to about zero mean and unit variance."""
        return (image / 255.0 - tf.constant(self.mean)) / tf.constant(self.std)


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG or PNG, upright, to uint8 [H, W, 3]; grey becomes three equal channels."""
    return decoding.image(decoding.read_header(encoded))


def random_crop(encoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Decodes a random part: 8 % to 100 % of the area, aspect 3/4 to 4/3.

    It is the whole image if ten tries fail.
    """
    header = decoding.read_header(encoded)
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.concat([header.size, [3]], 0),
        tf.zeros([1, 0, 4]),
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return decoding.image(header, tf.concat([begin[:2], size[:2]], 0))


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes bilinearly to float32 [size, size, 3]."""
    return tf.ensure_shape(tf.image.resize(image, [size, size]), [size, size, 3])
