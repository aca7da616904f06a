"""Bodies as they were before they were encoded to be sent: `Content-Encoding`."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from app.serving.errors import RequestError, cut

PIECE = 2**20  # bytes that are decompressed at once: milliseconds, between which others are heard
GZIP = 16 + zlib.MAX_WBITS  # zlib's number for it

Decoder = Callable[[bytes], Iterator[bytes]]  # of what arrives, in pieces; of b"" at the end


def decoder(encoding: str) -> Decoder:
    """Of a request's `Content-Encoding`.

    Raises:
        RequestError: it is none of those that are known.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return lambda chunk: iter([chunk])
    if name in ("gzip", "x-gzip"):
        return Gunzip().pieces
    raise RequestError(
        415, f'Content-Encoding "{cut(encoding)}" is not known: send the body as it is (identity), '
        "or with gzip.", {"Accept-Encoding": "gzip, identity"},
    )  # fmt: skip


class Gunzip:
    """Decompresses gzip, which may be several files one after the other."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(GZIP)
        self._is_begun = False

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """What a part is of, never more than a piece at once, however small the part.

        Raises:
            RequestError: it is no gzip, or ends too early.
        """
        if not chunk:
            self._must_be_whole()
        try:
            yield from self._inflated(chunk)
        except zlib.error:
            raise RequestError(
                400, "the body is not gzip, as its Content-Encoding says, or it is damaged."
            ) from None

    def _inflated(self, left: bytes) -> Iterator[bytes]:
        self._is_begun, is_full = True, False
        while left or is_full:
            if self._inflate.eof:
                self._inflate = zlib.decompressobj(GZIP)
            piece = self._inflate.decompress(left, PIECE)
            left = self._inflate.unused_data or self._inflate.unconsumed_tail
            is_full = len(piece) == PIECE and not self._inflate.eof
            yield piece

    def _must_be_whole(self) -> None:
        if self._is_begun and not self._inflate.eof:
            raise RequestError(400, "the body's gzip ends too early.")
