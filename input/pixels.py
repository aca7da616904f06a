"""From an encoded image to the model's input: decode, crop, resize, augment, normalise.

Every random choice is stateless, keyed by `seed`, which the caller derives from the
example's place in the training sequence: no process or thread shows in the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from input import decoding

if TYPE_CHECKING:
    from input.images import Images


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG or PNG, upright, as uint8 [H, W, 3]; grey becomes three equal channels."""
    return decoding.image(decoding.opened(encoded))


def training(config: Images, encoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """An augmented training input, float32 [size, size, 3]; seed is int64 [2]."""
    if config.augmentation == "imagenet":
        image = resize(random_crop(encoded, seed), config.size)
        flip_seed = tf.random.experimental.stateless_fold_in(seed, 1)
        image = tf.image.stateless_random_flip_left_right(image, flip_seed)
        return normalise(config, image)
    image = resize(decode(encoded), config.size)
    if config.augmentation in ("shift", "shift_flip"):
        margin = config.size // 8
        image = tf.pad(image, [[margin, margin], [margin, margin], [0, 0]])
        image = tf.image.stateless_random_crop(image, [config.size, config.size, 3], seed)
    if config.augmentation == "shift_flip":
        flip_seed = tf.random.experimental.stateless_fold_in(seed, 1)
        image = tf.image.stateless_random_flip_left_right(image, flip_seed)
    return normalise(config, image)


def evaluation(config: Images, encoded: tf.Tensor, most: int | None = None) -> tf.Tensor:
    """An evaluation input, float32 [size, size, 3]; fails of an image of more pixels than `most`.

    `imagenet` takes the standard centre crop: of the largest square, size / (size + 32)
    (224 of 256 at the usual size); other sets keep the whole image.
    """
    opened = decoding.opened(encoded, most)
    window = central(config, opened.size) if config.augmentation == "imagenet" else None
    return normalise(config, resize(decoding.image(opened, window), config.size))


def evaluation_of_array(config: Images, image: tf.Tensor) -> tf.Tensor:
    """The same of an image that is decoded, uint8 [H, W, 3]."""
    if config.augmentation == "imagenet":
        window = central(config, tf.shape(image))
        image = tf.image.crop_to_bounding_box(image, *tf.unstack(window))
    return normalise(config, resize(image, config.size))


def central(config: Images, shape: tf.Tensor) -> tf.Tensor:
    """[top, left, height, width] of the centre crop of an image of this height and width."""
    side = tf.cast(tf.minimum(shape[0], shape[1]), tf.float32)
    side = tf.cast(tf.round(side * config.size / (config.size + 32)), tf.int32)
    return tf.stack([(shape[0] - side) // 2, (shape[1] - side) // 2, side, side])


def random_crop(encoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """8 % to 100 % of the area, aspect 3/4 to 4/3; the whole image if ten tries fail."""
    opened = decoding.opened(encoded)
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.concat([opened.size, [3]], 0),
        tf.zeros([1, 0, 4]),
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return decoding.image(opened, tf.concat([begin[:2], size[:2]], 0))


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Bilinear, float32 [size, size, 3]."""
    return tf.ensure_shape(tf.image.resize(image, [size, size]), [size, size, 3])


def normalise(config: Images, image: tf.Tensor) -> tf.Tensor:
    """From [0, 255] to about zero mean and unit variance."""
    return (image / 255.0 - tf.constant(config.mean)) / tf.constant(config.std)
