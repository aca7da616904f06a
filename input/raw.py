"""What a client has of an example, an image file or a text: whether it can be taken at all."""

from __future__ import annotations

import io
from dataclasses import dataclass

FIELDS = {"image": "image_bytes", "text": "text"}  # by kind: its name in a request
FORMATS = ("JPEG", "PNG")


@dataclass(frozen=True)
class Limits:
    """The most of one example.

    Attributes:
        pixels: of an image, as its header says: a small file may hold very many.
        text: bytes of a text in UTF-8.
    """

    pixels: int = 50_000_000
    text: int = 100_000

    def check(self, kind: str, raw: bytes) -> None:
        """Looks at an example without decoding it.

        Raises:
            ValueError: what is wrong with it, in a sentence without its end.
        """
        (self._image if kind == "image" else self._text)(raw)

    def _image(self, raw: bytes) -> None:
        from PIL import Image

        if not raw:
            raise ValueError("the image is empty")
        Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, in the place of this one
        try:
            with Image.open(io.BytesIO(raw), formats=FORMATS) as image:  # reads the header
                width, height = image.size
        except Exception:  # whatever a damaged header does to the parser
            raise ValueError("it is neither a JPEG nor a PNG image") from None
        if width * height > self.pixels:
            raise ValueError(
                f"the image has {width} x {height} pixels, more than the {self.pixels} that are "
                "taken"
            )

    def _text(self, raw: bytes) -> None:
        if len(raw) > self.text:
            raise ValueError(
                f"the text has {len(raw)} bytes, more than the {self.text} that are taken"
            )
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"the text is not UTF-8 (at its byte {error.start + 1})") from None
        if not text.strip():
            raise ValueError("the text is empty")
