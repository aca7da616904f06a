"""Decodes images in the graph, for training, evaluation, prediction and exported models alike.

A JPEG or a PNG, by its content and not its name, becomes uint8 [H, W, 3]: turned upright by its
EXIF orientation, transparency blended with white, 16 bits cut to the higher 8. Shapes and windows
are those of the upright image. Of a JPEG a window is decoded without the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from input import failures, raw
from input.images import metadata

ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"  # a segment for: inverted CMYK
ALL = 2**31 - 1  # bytes
WHITE = 255

VERSION = 2  # changes when a file is decoded to other pixels; 1 ignored EXIF and transparency


class Encoded(NamedTuple):
    """A file, and what its header says.

    Attributes:
        raw: the file's bytes, string [].
        size: height and width of the upright image, int32 [2].
        orientation: how the pixels are stored, int32 [], 1 to 8 as in EXIF.
        has_fourth: whether there is a fourth channel, bool []: a JPEG's black ink, a PNG's alpha.
        is_plain: whether one operator decodes it, bool []: a JPEG without metadata, as most images
            of data sets are.
    """

    raw: tf.Tensor
    size: tf.Tensor
    orientation: tf.Tensor
    has_fourth: tf.Tensor
    is_plain: tf.Tensor


def read_header(encoded: tf.Tensor, max_pixels: int | None = None) -> Encoded:
    """Reads the header of a file, string []; the graph fails for more than `max_pixels`."""
    is_plain = metadata.is_plain_jpeg(encoded)
    size, orientation, has_fourth = tf.cond(
        is_plain, lambda: _plain_header(encoded), lambda: _header(encoded)
    )
    if max_pixels is not None:
        is_known = tf.io.is_jpeg(encoded) | _is_png(encoded)
        encoded = _checked(encoded, is_known, raw.UNKNOWN)
        is_few = tf.reduce_prod(tf.cast(size, tf.int64)) <= max_pixels
        encoded = _checked(encoded, is_few, f"the image has more than {max_pixels} pixels")
    return Encoded(encoded, size, orientation, has_fourth, is_plain & ~has_fourth)


def image(encoded: Encoded, window: tf.Tensor | None = None) -> tf.Tensor:
    """Decodes an image to uint8 [H, W, 3].

    Args:
        encoded: the image.
        window: the part to decode, [top, left, height, width], int32 [4]; None: all of it.
    """
    pixels = tf.cond(
        encoded.is_plain,
        lambda: _jpeg_pixels(encoded.raw, window),
        lambda: _pixels(encoded, window),
    )
    return tf.ensure_shape(pixels, [None, None, 3])


def image_fault(content: bytes) -> str | None:
    """Returns why a file cannot be used, without a full stop; None: it decodes to its end."""
    try:
        raw.image_size(content)
        _whole(tf.constant(content))
    except (ValueError, tf.errors.OpError) as error:
        return failures.sentence(error)
    return None


def _not_inlined(function: Callable[..., Any]) -> Any:
    """Makes a function that the graph calls instead of containing its operators.

    As part of the graph they would be scheduled for each example, also where they are skipped.
    """
    attributes = {"_noinline": True}
    return tf.function(function, autograph=False, experimental_attributes=attributes)


@_not_inlined
def _whole(encoded: tf.Tensor) -> tf.Tensor:
    return image(read_header(encoded))


def _plain_header(encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
    shape = tf.io.extract_jpeg_shape(encoded)
    return shape[:2], tf.constant(metadata.UPRIGHT), shape[2] > 3


@_not_inlined
def _header(encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
    def of_jpeg() -> tuple[tf.Tensor, ...]:
        shape = tf.io.extract_jpeg_shape(encoded)
        return shape[:2], metadata.of_jpeg(encoded), shape[2] > 3

    def of_png() -> tuple[tf.Tensor, ...]:
        """Reads IHDR, the first chunk: width, height, bit depth, colour type (11.2.1)."""
        size = tf.stack([metadata.number(encoded, at, tf.int32) for at in (20, 16)])
        orientation, has_transparency = metadata.of_png(encoded)
        has_alpha = metadata.number(encoded, 25, tf.uint8) & 4 > 0
        # The decoder reports a size below 1.
        return tf.cast(tf.maximum(size, 1), tf.int32), orientation, has_alpha | has_transparency

    size, orientation, has_fourth = tf.cond(tf.io.is_jpeg(encoded), of_jpeg, of_png)
    size = tf.where(orientation > 4, size[::-1], size)
    return size, orientation, has_fourth


@_not_inlined
def _pixels(encoded: Encoded, window: tf.Tensor | None) -> tf.Tensor:
    """Decodes and turns upright: swaps rows and columns, then flips vertically, horizontally."""
    swaps = encoded.orientation > 4
    rows, columns = (tf.reduce_any(encoded.orientation == x) for x in ([3, 4, 7, 8], [2, 3, 6, 7]))
    if window is not None:
        begin, size = window[:2], window[2:]
        begin = tf.where(tf.stack([rows, columns]), encoded.size - begin - size, begin)
        window = tf.concat([begin, size], 0)
        window = tf.where(swaps, tf.gather(window, [1, 0, 3, 2]), window)
    image = tf.cond(
        tf.io.is_jpeg(encoded.raw), lambda: _jpeg(encoded, window), lambda: _png(encoded, window)
    )
    for is_needed, turn in (
        (swaps, lambda x: tf.transpose(x, [1, 0, 2])),
        (rows, lambda x: tf.reverse(x, [0])),
        (columns, lambda x: tf.reverse(x, [1])),
    ):
        image = tf.cond(is_needed, lambda x=image, f=turn: f(x), lambda x=image: x)
    return image


def _jpeg(encoded: Encoded, window: tf.Tensor | None) -> tf.Tensor:
    """Decodes a JPEG of any kind.

    CMYK is stored inverted, which all programs but TensorFlow's decoder assume. The decoder needs
    Adobe's segment for that: one is put in front, and the file's own, read after it, wins. Nor does
    the decoder notice that a file ends early below a window: where the last bytes are not the end
    marker, all of it is decoded, so that a truncated file fails whichever window is decoded.
    """
    raw_bytes = tf.cond(
        encoded.has_fourth,
        lambda: tf.strings.join([metadata.SOI, ADOBE, tf.strings.substr(encoded.raw, 2, ALL)]),
        lambda: encoded.raw,
    )
    if window is None:
        return _jpeg_pixels(raw_bytes, None)
    return tf.cond(
        metadata.is_complete_jpeg(raw_bytes),
        lambda: _jpeg_pixels(raw_bytes, window),
        lambda: _cropped(_jpeg_pixels(raw_bytes, None), window),
    )


def _jpeg_pixels(encoded: tf.Tensor, window: tf.Tensor | None) -> tf.Tensor:
    if window is None:
        return tf.io.decode_jpeg(encoded, 3)
    return tf.image.decode_and_crop_jpeg(encoded, window, 3)


def _png(encoded: Encoded, window: tf.Tensor | None) -> tf.Tensor:
    """Decodes a PNG, with alpha only if it has one: the operator fills others' alpha wrongly.

    The operator decodes GIFs too, so it gets no bytes of a file that is no PNG, and fails.
    """
    png = tf.strings.substr(encoded.raw, 0, tf.where(_is_png(encoded.raw), ALL, 0))

    def decoded(channels: int) -> tf.Tensor:
        pixels = tf.io.decode_png(png, channels)
        return pixels if window is None else _cropped(pixels, window)

    return tf.cond(encoded.has_fourth, lambda: _on_white(decoded(4)), lambda: decoded(3))


def _is_png(encoded: tf.Tensor) -> tf.Tensor:
    return tf.strings.substr(encoded, 0, len(raw.PNG)) == raw.PNG


def _checked(encoded: tf.Tensor, is_right: tf.Tensor, fault: str) -> tf.Tensor:
    with tf.control_dependencies([encoded]):  # one check after the other
        check = tf.raw_ops.Assert(condition=is_right, data=[fault])
    with tf.control_dependencies([check]):
        return tf.identity(encoded)


def _cropped(image: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    return tf.slice(image, tf.concat([window[:2], [0]], 0), tf.concat([window[2:], [-1]], 0))


def _on_white(image: tf.Tensor) -> tf.Tensor:
    """Maps uint8 [H, W, 4] to [H, W, 3]: (colour alpha + white (255 - alpha)) / 255, rounded."""
    colour, alpha = tf.cast(image[..., :3], tf.uint16), tf.cast(image[..., 3:], tf.uint16)
    return tf.cast((colour * alpha + (WHITE * 255 + 127 - WHITE * alpha)) // 255, tf.uint8)
