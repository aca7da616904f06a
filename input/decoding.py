"""The one decoder of images, in the graph: training, evaluation, prediction, exported models.

A JPEG or a PNG, as its content says and not its name, becomes uint8 [H, W, 3]: upright, as its
EXIF says that it was held; on white, where it shines through; of 16 bits the higher 8. Shapes and
windows are of the upright image. Of a JPEG a window is decoded without the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from input import failures, metadata, raw

ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"  # a segment that says: CMYK, inverted
ALL = 2**31 - 1  # bytes
WHITE = 255

VERSION = 2  # what the same file is decoded to; 1 took no notice of EXIF and transparency


class Encoded(NamedTuple):
    """A file, and what it says of itself.

    Attributes:
        raw: its bytes, string [].
        size: height and width of the image upright, int32 [2].
        orientation: how it is stored, int32 [], 1 to 8 as EXIF numbers them.
        has_fourth: a channel beside three, bool []: a JPEG's black ink, a PNG's alpha.
        is_plain: one operator decodes it, bool []: a JPEG without metadata, as most of data sets.
    """

    raw: tf.Tensor
    size: tf.Tensor
    orientation: tf.Tensor
    has_fourth: tf.Tensor
    is_plain: tf.Tensor


def opened(encoded: tf.Tensor, most: int | None = None) -> Encoded:
    """Reads the header of a file, string []; in the graph it fails of more pixels than `most`."""
    is_plain = metadata.is_plain_jpeg(encoded)
    size, orientation, has_fourth = tf.cond(
        is_plain, lambda: _plain_header(encoded), lambda: _header(encoded)
    )
    if most is not None:
        is_known = tf.io.is_jpeg(encoded) | _is_png(encoded)
        encoded = _checked(encoded, is_known, raw.UNKNOWN)
        is_few = tf.reduce_prod(tf.cast(size, tf.int64)) <= most
        encoded = _checked(encoded, is_few, f"the image has more than {most} pixels")
    return Encoded(encoded, size, orientation, has_fourth, is_plain & ~has_fourth)


def image(of: Encoded, window: tf.Tensor | None = None) -> tf.Tensor:
    """Decodes uint8 [H, W, 3], or of it [top, left, height, width], int32 [4]."""
    pixels = tf.cond(of.is_plain, lambda: _jpeg_pixels(of.raw, window), lambda: _pixels(of, window))
    return tf.ensure_shape(pixels, [None, None, 3])


def image_fault(content: bytes) -> str | None:
    """Why a file cannot be taken, in a sentence without its end; None: it decodes to its end."""
    try:
        raw.image_size(content)
        _whole(tf.constant(content))
    except (ValueError, tf.errors.OpError) as error:
        return failures.sentence(error)
    return None


def _apart(function: Callable[..., Any]) -> Any:
    """A function that is called, not made part of the graph that calls it.

    There its operators would be looked at for each example, also where they are skipped.
    """
    apart = {"_noinline": True}
    return tf.function(function, autograph=False, experimental_attributes=apart)


@_apart
def _whole(encoded: tf.Tensor) -> tf.Tensor:
    return image(opened(encoded))


def _plain_header(encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
    shape = tf.io.extract_jpeg_shape(encoded)
    return shape[:2], tf.constant(metadata.UPRIGHT), shape[2] > 3


@_apart
def _header(encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
    def of_jpeg() -> tuple[tf.Tensor, ...]:
        shape = tf.io.extract_jpeg_shape(encoded)
        return shape[:2], metadata.of_jpeg(encoded), shape[2] > 3

    def of_png() -> tuple[tf.Tensor, ...]:
        """Of the chunk IHDR, the first: width, height, depth, kind of colour (11.2.1)."""
        size = tf.stack([metadata.number(encoded, at, tf.int32) for at in (20, 16)])
        orientation, has_transparency = metadata.of_png(encoded)
        has_alpha = metadata.number(encoded, 25, tf.uint8) & 4 > 0
        # Of a size below 1 the decoder will speak.
        return tf.cast(tf.maximum(size, 1), tf.int32), orientation, has_alpha | has_transparency

    size, orientation, has_fourth = tf.cond(tf.io.is_jpeg(encoded), of_jpeg, of_png)
    size = tf.where(orientation > 4, size[::-1], size)
    return size, orientation, has_fourth


@_apart
def _pixels(of: Encoded, window: tf.Tensor | None) -> tf.Tensor:
    """Turns what is stored: rows become columns, then bottom becomes top, then right left."""
    swaps = of.orientation > 4
    rows, columns = (tf.reduce_any(of.orientation == x) for x in ([3, 4, 7, 8], [2, 3, 6, 7]))
    if window is not None:
        begin, size = window[:2], window[2:]
        begin = tf.where(tf.stack([rows, columns]), of.size - begin - size, begin)
        window = tf.concat([begin, size], 0)
        window = tf.where(swaps, tf.gather(window, [1, 0, 3, 2]), window)
    image = tf.cond(tf.io.is_jpeg(of.raw), lambda: _jpeg(of, window), lambda: _png(of, window))
    for is_needed, turn in (
        (swaps, lambda x: tf.transpose(x, [1, 0, 2])),
        (rows, lambda x: tf.reverse(x, [0])),
        (columns, lambda x: tf.reverse(x, [1])),
    ):
        image = tf.cond(is_needed, lambda x=image, f=turn: f(x), lambda x=image: x)
    return image


def _jpeg(of: Encoded, window: tf.Tensor | None) -> tf.Tensor:
    """Decodes a JPEG of any kind.

    Inks are stored inverted, as all programs but TensorFlow's decoder take for granted. That asks
    for a segment of Adobe's: one is put in front, and the file's own, read after it, counts. Nor
    does it miss the end of a file below a window: where the last bytes are not the end's, the whole
    is decoded, so that a file which is cut off fails whatever is wanted of it.
    """
    encoded = tf.cond(
        of.has_fourth,
        lambda: tf.strings.join([metadata.SOI, ADOBE, tf.strings.substr(of.raw, 2, ALL)]),
        lambda: of.raw,
    )
    if window is None:
        return _jpeg_pixels(encoded, None)
    return tf.cond(
        metadata.ends(encoded),
        lambda: _jpeg_pixels(encoded, window),
        lambda: _cropped(_jpeg_pixels(encoded, None), window),
    )


def _jpeg_pixels(encoded: tf.Tensor, window: tf.Tensor | None) -> tf.Tensor:
    if window is None:
        return tf.io.decode_jpeg(encoded, 3)
    return tf.image.decode_and_crop_jpeg(encoded, window, 3)


def _png(of: Encoded, window: tf.Tensor | None) -> tf.Tensor:
    """Decodes a PNG; four channels of those that have them: it fills others' fourth wrongly.

    The operator decodes GIFs too; of no bytes it fails.
    """
    encoded = tf.strings.substr(of.raw, 0, tf.where(_is_png(of.raw), ALL, 0))

    def decoded(channels: int) -> tf.Tensor:
        pixels = tf.io.decode_png(encoded, channels)
        return pixels if window is None else _cropped(pixels, window)

    return tf.cond(of.has_fourth, lambda: _on_white(decoded(4)), lambda: decoded(3))


def _is_png(encoded: tf.Tensor) -> tf.Tensor:
    return tf.strings.substr(encoded, 0, len(raw.PNG)) == raw.PNG


def _checked(encoded: tf.Tensor, is_right: tf.Tensor, fault: str) -> tf.Tensor:
    with tf.control_dependencies([encoded]):  # and so in turn
        check = tf.raw_ops.Assert(condition=is_right, data=[fault])
    with tf.control_dependencies([check]):
        return tf.identity(encoded)


def _cropped(image: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    return tf.slice(image, tf.concat([window[:2], [0]], 0), tf.concat([window[2:], [-1]], 0))


def _on_white(image: tf.Tensor) -> tf.Tensor:
    """From uint8 [H, W, 4] to [H, W, 3]: (colour alpha + white (255 - alpha)) / 255, rounded."""
    colour, alpha = tf.cast(image[..., :3], tf.uint16), tf.cast(image[..., 3:], tf.uint16)
    return tf.cast((colour * alpha + (WHITE * 255 + 127 - WHITE * alpha)) // 255, tf.uint8)
