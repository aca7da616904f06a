"""From an encoded image to the model's input: decode, crop, resize, augment, normalise.

Every random choice is stateless, keyed by `seed`, which the caller derives from the
example's place in the training sequence: no process or thread shows in the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

if TYPE_CHECKING:
    from input.images import Images


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """A JPEG or PNG image as uint8 [H, W, 3]; grey becomes three equal channels."""
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


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


def evaluation(config: Images, encoded: tf.Tensor) -> tf.Tensor:
    """An evaluation input, float32 [size, size, 3].

    `imagenet` takes the standard centre crop: of the largest square, size / (size + 32)
    (224 of 256 at the usual size); other sets keep the whole image.
    """
    if config.augmentation != "imagenet":
        return normalise(config, resize(decode(encoded), config.size))
    window = central(config, image_shape(encoded))
    return normalise(config, resize(decode_window(encoded, window), config.size))


def evaluation_of_array(config: Images, image: tf.Tensor) -> tf.Tensor:
    """The same of an image that is decoded, uint8 [H, W, 3]."""
    if config.augmentation == "imagenet":
        window = central(config, tf.shape(image))
        image = tf.image.crop_to_bounding_box(image, *tf.unstack(window))
    return normalise(config, resize(image, config.size))


def central(config: Images, shape: tf.Tensor) -> tf.Tensor:
    """[top, left, height, width] of the centre crop of an image of this shape."""
    side = tf.cast(tf.minimum(shape[0], shape[1]), tf.float32)
    side = tf.cast(tf.round(side * config.size / (config.size + 32)), tf.int32)
    return tf.stack([(shape[0] - side) // 2, (shape[1] - side) // 2, side, side])


def random_crop(encoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """8 % to 100 % of the area, aspect 3/4 to 4/3; the whole image if ten tries fail."""
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        image_shape(encoded),
        tf.zeros([1, 0, 4]),
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return decode_window(encoded, tf.concat([begin[:2], size[:2]], 0))


def image_shape(encoded: tf.Tensor) -> tf.Tensor:
    """int32 [3] of an encoded image: from the header of a JPEG, by decoding a PNG."""
    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.extract_jpeg_shape(encoded),
        lambda: tf.shape(decode(encoded)),
    )


def within(encoded: tf.Tensor, most: int) -> tf.Tensor:
    """An encoded image, if its header says that it has at most so many pixels.

    A PNG begins with a signature of 8 bytes, and an IHDR chunk whose length and name are 8 more;
    width and height follow, 4 bytes each, the highest first (ISO/IEC 15948, 11.2.1).
    """

    def of_png() -> tf.Tensor:
        sizes = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.uint8, little_endian=False)
        powers = tf.constant([2**24, 2**16, 2**8, 1], tf.int64)
        return tf.reduce_sum(tf.reshape(tf.cast(sizes, tf.int64), [2, 4]) * powers, 1)

    size = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.cast(tf.io.extract_jpeg_shape(encoded)[:2], tf.int64),
        of_png,
    )
    is_png = tf.strings.substr(encoded, 0, 4) == b"\x89PNG"
    known = tf.debugging.Assert(tf.io.is_jpeg(encoded) | is_png, ["neither a JPEG nor a PNG image"])
    few = tf.debugging.Assert(
        tf.reduce_prod(size) <= most, [f"the image has more than {most} pixels:", size]
    )
    with tf.control_dependencies([x for x in (known, few) if x is not None]):
        return tf.identity(encoded)


def decode_window(encoded: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Decodes [top, left, height, width] only, where the format allows it (JPEG)."""
    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.image.decode_and_crop_jpeg(encoded, window, channels=3),
        lambda: tf.image.crop_to_bounding_box(decode(encoded), *tf.unstack(window)),
    )


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Bilinear, float32 [size, size, 3]."""
    return tf.ensure_shape(tf.image.resize(image, [size, size]), [size, size, 3])


def normalise(config: Images, image: tf.Tensor) -> tf.Tensor:
    """From [0, 255] to about zero mean and unit variance."""
    return (image / 255.0 - tf.constant(config.mean)) / tf.constant(config.std)
