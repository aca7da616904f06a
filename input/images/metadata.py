"""Reads an image file's metadata in the graph: the EXIF orientation, and transparency.

The operators walk from segment to segment, or chunk to chunk. A file may hold anything: nothing is
read past its end, no walk is longer than `MAX_PIECES`, and damaged metadata counts as none.

    JPEG (ITU-T T.81, B.1)     FF D8, then segments: FF, a code, 2 bytes of length, content
    PNG (ISO/IEC 15948, 5.3)   8 bytes, then chunks: 4 bytes of length, name, content, checksum
    EXIF (TIFF 6.0, 2)         II or MM, the byte order; the offset of the entries; their number,
                               and entries of 12 bytes: tag, type, 4 bytes of count, value
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

MAX_PIECES = 65_536  # three times as many as the largest files that are accepted have
FRONT = 2048  # bytes, within which the tables of a JPEG end
ORIENTATION, SHORT = 0x112, 3  # a tag and a type
UPRIGHT = 1
SOI, EOI = b"\xff\xd8", b"\xff\xd9"  # of a JPEG


def is_plain_jpeg(raw: tf.Tensor) -> tf.Tensor:
    """Returns whether a file is a complete JPEG without metadata, as in most data sets; bool [].

    It begins with JFIF's segment of 16 bytes, directly followed by the tables, without EXIF.
    """
    size = tf.strings.length(raw)
    at = tf.clip_by_value(tf.stack([0, 20, size - 2]), 0, size)
    is_usual = tf.strings.substr(raw, at, [6, 2, 2]) == [SOI + b"\xff\xe0\0\x10", b"\xff\xdb", EOI]
    has_exif = tf.strings.regex_full_match(tf.strings.substr(raw, 0, FRONT), r"\C*Exif\C*")
    return tf.reduce_all(is_usual) & ~has_exif


def is_complete_jpeg(raw: tf.Tensor) -> tf.Tensor:
    """Returns whether the last bytes of a JPEG are its end marker, bool []."""
    return tf.strings.substr(raw, -2, 2) == EOI


def of_jpeg(raw: tf.Tensor) -> tf.Tensor:
    """Reads the orientation of a JPEG, int32 [], 1 to 8 as EXIF numbers them."""

    def step(at: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
        head = tf.io.decode_raw(part(raw, at, 4), tf.uint16, little_endian=False, fixed_length=4)
        code, length = tf.unstack(tf.cast(head, tf.int64), 2)
        is_exif = (code == 0xFFE1) & (part(raw, at + 4, 6) == b"Exif\0\0")
        is_last = is_exif | (code == 0xFFDA) | (code == 0xFFD9)  # pixels, the end
        is_segment = (code > 0xFF00) & (code < 0xFFFF)  # else fill bytes before one
        following = tf.where(is_segment, at + 2 + tf.maximum(length, 2), at + 1)
        found = tf.where(is_exif, at + 10, 0), tf.where(is_exif, length - 8, 0)
        return tf.where(is_last, _size(raw), following), *found

    nowhere = tf.constant(0, tf.int64)
    return _orientation(raw, *_walk(raw, 2, step, nowhere, nowhere))


def of_png(raw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads the orientation of a PNG, int32 [], and whether a tRNS chunk stands before its pixels.

    The orientation may stand behind the pixels, and most files have neither: so the file is
    searched for the names first.
    """
    return tf.cond(
        _holds(raw, "eXIf") | _holds(raw, "tRNS"),
        lambda: _walked_png(raw),
        lambda: (tf.constant(UPRIGHT), tf.constant(False)),
    )


def part(raw: tf.Tensor, at: Any, count: Any) -> tf.Tensor:
    """Returns up to `count` bytes of a string from there."""
    return tf.strings.substr(raw, tf.minimum(tf.cast(at, tf.int64), _size(raw)), count)


def number(raw: tf.Tensor, at: Any, dtype: tf.DType) -> tf.Tensor:
    """Reads the big-endian integer there, int64 []; 0 at the end."""
    piece = part(raw, at, dtype.size)
    found = tf.io.decode_raw(piece, dtype, little_endian=False, fixed_length=dtype.size)
    return tf.cast(found[0], tf.int64)


def _size(raw: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.strings.length(raw), tf.int64)


def _holds(raw: tf.Tensor, name: str) -> tf.Tensor:
    # The only searching operator that is as fast as memory.
    without = tf.strings.regex_replace(raw, name, "", replace_global=False)
    return tf.strings.length(without) < tf.strings.length(raw)


def _walk(raw: tf.Tensor, begin: int, step: Callable[..., Any], *state: Any) -> Any:
    """Steps from piece to piece up to the end; returns the state, which each step updates."""
    size = _size(raw)
    first = (tf.constant(begin, tf.int64), *state)
    return tf.while_loop(lambda at, *_: at < size, step, first, maximum_iterations=MAX_PIECES)[1:]


def _walked_png(raw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    def step(
        at: tf.Tensor, start: tf.Tensor, size: tf.Tensor, is_front: tf.Tensor, shines: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        length, name = number(raw, at, tf.int32), part(raw, at + 4, 4)
        is_exif = (name == b"eXIf") & (start == 0)
        is_last = (name == b"IEND") | (length < 0)
        found = tf.where(is_exif, at + 8, start), tf.where(is_exif, length, size)
        is_front &= name != b"IDAT"
        shines |= is_front & (name == b"tRNS") & (length > 0)
        return tf.where(is_last, _size(raw), at + 12 + length), *found, is_front, shines

    nowhere = tf.constant(0, tf.int64)
    start, size, _, shines = _walk(
        raw, 8, step, nowhere, nowhere, tf.constant(True), tf.constant(False)
    )
    return _orientation(raw, start, size), shines


def _orientation(raw: tf.Tensor, start: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Reads the orientation of the EXIF block there; upright if it is missing or damaged."""
    size = tf.minimum(size, _size(raw) - start)
    order = part(raw, start, 4)
    is_little = order == b"II*\0"
    is_known = (size > 10) & (is_little | (order == b"MM\0*"))
    return tf.cond(
        is_known, lambda: _entry(raw, start, size, is_little), lambda: tf.constant(UPRIGHT)
    )


def _entry(raw: tf.Tensor, start: tf.Tensor, size: tf.Tensor, is_little: tf.Tensor) -> tf.Tensor:
    def words(at: Any, count: Any) -> tf.Tensor:
        piece = part(raw, start + at, 2 * count)
        found = [tf.io.decode_raw(piece, tf.uint16, little_endian=x) for x in (True, False)]
        return tf.cast(tf.where(is_little, *found), tf.int64)

    def whole(two: tf.Tensor) -> tf.Tensor:  # of 4 bytes
        first, second = tf.unstack(two, 2, axis=-1)
        return tf.where(is_little, first + 65_536 * second, 65_536 * first + second)

    at = whole(words(4, 2))
    at = tf.where(at < 8, size - 2, tf.minimum(at, size - 2))  # without entries, the end
    count = tf.minimum(words(at, 1)[0], (size - at - 2) // 12)
    entries = tf.reshape(words(at + 2, 6 * count), [-1, 6])
    tag, kind, value = entries[:, 0], entries[:, 1], entries[:, 4]
    is_one = (tag == ORIENTATION) & (kind == SHORT) & (whole(entries[:, 2:4]) == 1)
    found = tf.boolean_mask(value, is_one & (value >= 1) & (value <= 8))
    return tf.cast(tf.concat([found, [UPRIGHT]], 0)[0], tf.int32)
