"""Opens text files as seekable UTF-8 with line feeds, however they are stored.

    pipe            copied
    .gz .bz2 .xz    decompressed
    UTF-16, UTF-32  recoded as UTF-8
    old Mac lines   carriage returns without line feeds become line feeds

The results are temporary files, which end with the process. How a file is stored is found by its
content, not by its name.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from input import InputError

_BLOCK = 2**20  # bytes
_OPENERS: tuple[tuple[bytes, Any], ...] = (
    (b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)
)  # fmt: skip
_ENCODINGS = (  # UTF-32's mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_FOREIGN = (
    (b"PAR1", "a Parquet file"), (b"ARROW1", "an Arrow file"), (b"FEA1", "a Feather file"),
    (b"PK\x03\x04", "a ZIP archive, as spreadsheets are"), (b"%PDF", "a PDF document"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"), (b"SQLite format 3", "a database"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard"), (b"\x80\x04\x95", "a Python pickle"),
    (b"version https://git-lfs", "a pointer that git-lfs left in the place of the file"),
)  # fmt: skip


def open_utf8(path: Path) -> IO[bytes]:
    """Opens a file for reading at any offset.

    Raises:
        OSError: it cannot be read.
        InputError: it is no text, or damaged.
    """
    file: IO[bytes] = path.open("rb")
    if not path.is_file():
        file = _copy(_blocks(file))
    while opener := _by_magic(_head(file), _OPENERS):
        file = _decompress(path, opener, file)
    head = _head(file)
    if name := _by_magic(head, _FOREIGN):
        raise InputError(
            f"{path} is {name}: save its table as .csv, .tsv or .jsonl in UTF-8, and name that."
        )
    if encoding := _by_magic(head, _ENCODINGS) or _guess_encoding(head):
        file = _recode(path, file, encoding)
    elif b"\0" in head:
        raise InputError(f"{path} is no text: it holds zero bytes. Give a text file in UTF-8.")
    return _with_line_feeds(file)


def _head(file: IO[bytes]) -> bytes:
    file.seek(0)
    head = file.read(4096)
    file.seek(0)
    return head


def _by_magic(head: bytes, known: Sequence[tuple[bytes, Any]]) -> Any:
    """Returns what the first bytes of a file stand for; None: nothing that is known."""
    return next((meaning for magic, meaning in known if head.startswith(magic)), None)


def _guess_encoding(head: bytes) -> str | None:
    """Recognises UTF-16 without a byte-order mark: every other byte of Latin text is zero."""
    half = len(head) // 2
    for place, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if half > 1 and head[place::2].count(0) > 0.4 * half and not head[1 - place :: 2].count(0):
            return name
    return None


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(_BLOCK), b"")


def _copy(blocks: Iterator[bytes]) -> IO[bytes]:
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    for block in blocks:
        copy.write(block)
    copy.seek(0)
    return copy


def _decompress(path: Path, opener: Any, file: IO[bytes]) -> IO[bytes]:
    try:
        with opener(file) as compressed:
            return _copy(_blocks(compressed))
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError) as error:
        raise InputError(
            f"{path} cannot be unpacked ({error}): fetch it or compress it again."
        ) from None


def _recode(path: Path, file: IO[bytes], encoding: str) -> IO[bytes]:
    try:
        return _copy(text.encode() for text in codecs.iterdecode(_blocks(file), encoding))
    except UnicodeError as error:
        raise InputError(f"{path} is not {encoding.upper()} ({error}): save it as UTF-8.") from None


def _with_line_feeds(file: IO[bytes]) -> IO[bytes]:
    has_returns = False
    for block in _blocks(file):
        if b"\n" in block:
            file.seek(0)
            return file
        has_returns = has_returns or b"\r" in block
    file.seek(0)
    if not has_returns:
        return file
    return _copy(block.replace(b"\r", b"\n") for block in _blocks(file))
