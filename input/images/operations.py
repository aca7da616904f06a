"""The arithmetic of the built-in augmentations, in graph operators, as Pillow has it where it does.

Images are uint8 [H, W, 3] within `rand_augment`, float32 in [0, 255] outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

GREY = 128.0  # what comes into view
MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255  # of ImageNet
TRIES = 10
GENERATOR = "philox"

Operation = Callable[[tf.Tensor, float, tf.Tensor], tf.Tensor]  # image, magnitude, sign -> image


def rand_augment(
    image: tf.Tensor, key: tf.Tensor, names: Sequence[str], count: int, magnitude: float
) -> tf.Tensor:
    """Applies `count` of the named operations, drawn by the key; see `RandAugment`.

    Args:
        image: float32 [H, W, 3].
        key: int64 [2].
        names: keys of OPERATIONS.
        count: of operations.
        magnitude: 0 to 1.
    """
    shape = image.shape
    image = tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)
    for index, sign in drawn(key, len(names), count):
        branches = [
            lambda x=image, f=OPERATIONS[name], s=sign: f(x, magnitude, s) for name in names
        ]
        image = tf.ensure_shape(tf.switch_case(index, branches), shape)
    return tf.cast(image, tf.float32)


def drawn(key: tf.Tensor, choices: int, count: int) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Returns, for each of `count` draws, an index below `choices` and a sign, 1. or -1."""
    indices = tf.random.stateless_uniform([count], key, 0, choices, tf.int32, alg=GENERATOR)
    other = tf.random.experimental.stateless_fold_in(key, 1)
    signs = tf.random.stateless_uniform([count], other, 0, 2, tf.int32, alg=GENERATOR) * 2 - 1
    return [(indices[k], tf.cast(signs[k], tf.float32)) for k in range(count)]


def erase(
    image: tf.Tensor, key: tf.Tensor, probability: float, area: tuple[float, float],
    aspect: float, fill: str,
) -> tf.Tensor:  # fmt: skip
    """Erases a rectangle; see `RandomErasing`. Image: float32 [H, W, 3]."""
    height, width, _ = image.shape

    def uniform(shape: Sequence[int], part: int, low: float, high: float) -> tf.Tensor:
        seed = tf.random.experimental.stateless_fold_in(key, part)
        return tf.random.stateless_uniform(shape, seed, low, high, alg=GENERATOR)

    areas = uniform([TRIES], 1, *area) * float(height * width)
    ratios = uniform([TRIES], 2, aspect, 1 / aspect + 1e-6)
    heights = tf.cast(tf.round(tf.sqrt(areas * ratios)), tf.int32)
    widths = tf.cast(tf.round(tf.sqrt(areas / ratios)), tf.int32)
    fits = (heights < height) & (widths < width) & (heights > 0) & (widths > 0)
    first = tf.argmax(tf.cast(fits, tf.int32))
    h, w = heights[first], widths[first]
    place = uniform([2], 3, 0.0, 1.0)
    top = tf.cast(place[0] * tf.cast(height - h + 1, tf.float32), tf.int32)
    left = tf.cast(place[1] * tf.cast(width - w + 1, tf.float32), tf.int32)
    rows, columns = tf.range(height)[:, tf.newaxis], tf.range(width)[tf.newaxis]
    inside = (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)
    erases = tf.reduce_any(fits) & (uniform([], 4, 0.0, 1.0) < probability)
    filling = tf.constant(MEAN) if fill == "mean" else uniform(image.shape, 5, 0.0, 255.0)
    return tf.where((inside & erases)[..., tf.newaxis], filling, image)


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to 0 to 255; one of a single value stays."""
    values = tf.cast(image, tf.int32)
    low = tf.reduce_min(values, [0, 1], keepdims=True)
    span = tf.reduce_max(values, [0, 1], keepdims=True) - low
    stretched = (values - low) * 255 // tf.maximum(span, 1)
    return tf.cast(tf.where(span > 0, stretched, values), tf.uint8)


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Maps the values of each channel so that all are about as frequent."""

    def channel(values: tf.Tensor) -> tf.Tensor:
        values = tf.cast(values, tf.int32)
        counts = tf.math.bincount(tf.reshape(values, [-1]), minlength=256, maxlength=256)
        last = counts[tf.reduce_max(values)]
        step = (tf.reduce_sum(counts) - last) // 255
        table = (step // 2 + tf.cumsum(counts, exclusive=True)) // tf.maximum(step, 1)
        return tf.where(step > 0, tf.gather(tf.minimum(table, 255), values), values)

    return tf.cast(tf.stack([channel(image[..., k]) for k in range(3)], -1), tf.uint8)


def solarize(image: tf.Tensor, threshold: int) -> tf.Tensor:
    """Inverts values of `threshold` and above."""
    return tf.where(tf.cast(image, tf.int32) >= threshold, 255 - image, image)


def posterize(image: tf.Tensor, bits: int) -> tf.Tensor:
    """Keeps the higher bits of each value."""
    return tf.bitwise.bitwise_and(image, tf.constant(256 - 2 ** (8 - bits), tf.uint8))


def blend(dull: tf.Tensor, image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Returns the dull image for factor 0, the image for 1, and beyond it for more."""
    base = tf.cast(dull, tf.float32)
    mixed = base + factor * (tf.cast(image, tf.float32) - base)
    return tf.cast(tf.clip_by_value(mixed, 0.0, 255.0), tf.uint8)


def grey(image: tf.Tensor) -> tf.Tensor:
    """Returns the luma (ITU-R 601-2), uint8 [H, W, 1]."""
    weights = tf.constant([19595, 38470, 7471])
    luma = tf.reduce_sum(tf.cast(image, tf.int32) * weights, -1, keepdims=True)
    return tf.cast((luma + 2**15) // 2**16, tf.uint8)


def smooth(image: tf.Tensor) -> tf.Tensor:
    """Averages over 3x3 pixels, the middle five times; the border stays."""
    kernel = np.ones([3, 3, 1, 1], np.float32)
    kernel[1, 1] = 5
    values = tf.cast(image, tf.float32)
    inner = tf.nn.depthwise_conv2d(values[tf.newaxis], np.tile(kernel, [1, 1, 3, 1]), [1] * 4,
                                   "VALID")[0]  # fmt: skip
    inner = tf.floor(inner / 13 + 0.5)
    middle = tf.concat([values[1:-1, :1], inner, values[1:-1, -1:]], 1)
    return tf.cast(tf.concat([values[:1], middle, values[-1:]], 0), tf.uint8)


def contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Moves all values from the image's mean luma, or towards it."""
    luma = tf.cast(grey(image), tf.int32)
    mean = (2 * tf.reduce_sum(luma) + tf.size(luma)) // (2 * tf.size(luma))  # rounded
    return blend(tf.zeros_like(image) + tf.cast(mean, tf.uint8), image, factor)


def warp(image: tf.Tensor, matrix: Sequence[tf.Tensor]) -> tf.Tensor:
    """Takes each pixel (x, y) from the nearest to (a x + b y + c, d x + e y + f).

    Coordinates are of pixels' centres, 0.5 for the first.
    """
    a, b, c, d, e, f = (tf.cast(x, tf.float32) for x in matrix)
    c, f = c + 0.5 * (a + b) - 0.5, f + 0.5 * (d + e) - 0.5
    zero = tf.zeros([])
    warped = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(image, tf.float32)[tf.newaxis],
        transforms=tf.stack([a, b, c, d, e, f, zero, zero])[tf.newaxis],
        output_shape=tf.shape(image)[:2], fill_value=GREY, interpolation="NEAREST",
        fill_mode="CONSTANT",
    )  # fmt: skip
    return tf.cast(warped[0], tf.uint8)


def rotate(image: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
    """Turns an image about its middle, counter-clockwise."""
    angle = degrees * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    size = tf.cast(tf.shape(image), tf.float32)
    y, x = size[0] / 2, size[1] / 2
    return warp(image, [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y])


def _factor(magnitude: float, sign: tf.Tensor) -> tf.Tensor:
    return 1 + 0.9 * magnitude * sign


def _shift(image: tf.Tensor, magnitude: float, sign: tf.Tensor, axis: int) -> tf.Tensor:
    return tf.round(0.45 * magnitude * tf.cast(tf.shape(image)[axis], tf.float32)) * sign


OPERATIONS: dict[str, Operation] = {
    "identity": lambda x, m, s: x,
    "autocontrast": lambda x, m, s: autocontrast(x),
    "equalize": lambda x, m, s: equalize(x),
    "rotate": lambda x, m, s: rotate(x, 30 * m * s),
    "solarize": lambda x, m, s: solarize(x, round(256 * (1 - m))),
    "color": lambda x, m, s: blend(grey(x), x, _factor(m, s)),
    "posterize": lambda x, m, s: posterize(x, 8 - round(4 * m)),
    "contrast": lambda x, m, s: contrast(x, _factor(m, s)),
    "brightness": lambda x, m, s: blend(tf.zeros_like(x), x, _factor(m, s)),
    "sharpness": lambda x, m, s: blend(smooth(x), x, _factor(m, s)),
    "shear_x": lambda x, m, s: warp(x, [1, 0.3 * m * s, 0, 0, 1, 0]),
    "shear_y": lambda x, m, s: warp(x, [1, 0, 0, 0.3 * m * s, 1, 0]),
    "translate_x": lambda x, m, s: warp(x, [1, 0, _shift(x, m, s, 1), 0, 1, 0]),
    "translate_y": lambda x, m, s: warp(x, [1, 0, 0, 0, 1, _shift(x, m, s, 0)]),
}
