"""Checks examples as they are stored or sent, image files and texts, without decoding them."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

FIELDS = {"image": "image_bytes", "text": "text"}  # names in a request, by kind
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"  # first bytes of the formats
UNKNOWN = "it is neither a JPEG nor a PNG image"
DAMAGED = {name: f"the {name} image is damaged or cut off" for name in ("JPEG", "PNG")}
OTHERS = {  # first bytes of other formats, as regular expressions
    "a GIF image": rb"GIF8",
    "a WebP image": rb"RIFF....WEBP",
    "a BMP image": rb"BM",
    "a TIFF image": rb"II[*+]\0|MM\0[*+]",
    "an AVIF image": rb"....ftypavi[fs]",
    "a HEIC image": rb"....ftyp(he[iv]|mif1|msf1)",
    "a JPEG 2000 image": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "a JPEG XL image": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "an icon": rb"\0\0[\x01\x02]\0",
    "a Photoshop image": rb"8BPS",
    "a PDF document": rb"%PDF",
    "a video": rb"....ftyp|RIFF....AVI |\x1aE\xdf\xa3",
    "an archive": rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!",
    "an HTML page": rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)\b",
    "an SVG drawing": rb"(\xef\xbb\xbf)?\s*<(.{,1000}<)?svg\b",
}
SEGMENT = re.compile(rb"\xff+([^\0\xff])", re.DOTALL)  # begins a segment of a JPEG
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # segments with the image's size (T.81, B.1)
DECODED = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # of those, sequential and progressive
PIXELS = {0xDA, 0xD9}  # segments after which there is none with the size


@dataclass(frozen=True)
class Limits:
    """The largest example that is accepted.

    Attributes:
        pixels: of an image, by its header: a small file may hold very many.
        text: bytes of a text in UTF-8.
    """

    pixels: int = 50_000_000
    text: int = 100_000

    def check(self, kind: str, raw: bytes) -> None:
        """Checks an example of kind `image` or `text`.

        Raises:
            ValueError: says what is wrong with it, without a full stop.
        """
        (self._image if kind == "image" else self._text)(raw)

    def _image(self, raw: bytes) -> None:
        width, height = image_size(raw)
        if width * height > self.pixels:
            raise ValueError(
                f"the image has {width} x {height} pixels, more than the {self.pixels} that are "
                "accepted"
            )

    def _text(self, raw: bytes) -> None:
        if len(raw) > self.text:
            raise ValueError(
                f"the text has {len(raw)} bytes, more than the {self.text} that are accepted"
            )
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"the text is not UTF-8 (at its byte {error.start + 1})") from None
        if not text.strip():
            raise ValueError("the text is empty")


def image_size(raw: bytes) -> tuple[int, int]:
    """Returns width and height in pixels as the header says, before any EXIF rotation.

    Raises:
        ValueError: the file is no JPEG or PNG (it says what it is), or its header is damaged.
    """
    if not raw:
        raise ValueError("the image is empty")
    if raw.startswith(JPEG):
        return _jpeg_size(raw)
    if not raw.startswith(PNG):
        raise ValueError(_other(raw))
    if raw[12:16] != b"IHDR" or len(raw) < 33:
        raise ValueError(DAMAGED["PNG"])
    width, height = struct.unpack_from(">II", raw, 16)
    return width, height


def _jpeg_size(raw: bytes) -> tuple[int, int]:
    at = 2
    while (found := SEGMENT.search(raw, at)) and len(raw) >= found.end() + 7:
        code, at = found[1][0], found.end()
        length, bits, height, width = struct.unpack_from(">HBHH", raw, at)
        if code in FRAMES:
            if code not in DECODED or bits != 8:
                raise ValueError(
                    "it is a JPEG of a rare kind (lossless, hierarchical, or not of 8 bits): save "
                    "it as a usual one"
                )
            return width, height
        if code in PIXELS:
            break
        at += length
    raise ValueError(DAMAGED["JPEG"])


def _other(raw: bytes) -> str:
    for name, begin in OTHERS.items():
        if re.match(begin, raw[:1100], re.DOTALL | re.IGNORECASE):
            return f"it is {name}, not a JPEG or PNG: convert it"
    return UNKNOWN
