"""Reads files by path or URL (`s3://bucket/train/*.tar`): local ones directly, others by fsspec.

For `s3://` it takes s3fs where that is installed, else the client that pyarrow brings. Both find
credentials, region and endpoint in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL) or in the files that AWS's own tools use. They are
never part of a name here, and so of no message or record.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlsplit

from input import InputError, failures, paths

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


def is_url(text: str) -> bool:
    """Returns whether a name is a URL, not a path."""
    return "://" in text


def is_table(dataset: str) -> bool:
    """Returns whether a name is that of data that are read by columns (`input.tables`).

    That is a .parquet or .tar file, or several by a pattern, a URL, or a folder of `datasets`.
    """
    if is_url(dataset) or dataset.lower().endswith((".parquet", ".tar")):
        return True
    folder = paths.expand_user(dataset)
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def require_no_credentials(text: str) -> None:
    """Refuses a URL with a user or a password in it, which would be recorded.

    Raises:
        ValueError: it has; the message does not repeat them.
    """
    if is_url(text) and "@" in urlsplit(text).netloc:
        scheme = text.partition("://")[0]
        raise ValueError(
            f"the {scheme}:// URL has credentials in it: leave them out, and set them in the "
            "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3)"
        )


def find(pattern: str) -> list[str]:
    """Returns the files of a path or URL that may have `*`, sorted.

    Raises:
        InputError: there are none, or the storage cannot be reached.
    """
    if not is_url(pattern):
        path = str(paths.expand_user(pattern))
        found = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
    else:
        with _errors(pattern):
            fs = _file_system(pattern.partition("://")[0])
            inner = fs._strip_protocol(pattern)
            names = fs.glob(inner) if glob.has_magic(inner) else [inner] * fs.exists(inner)
            scheme = pattern.partition("://")[0]
            found = sorted(f"{scheme}://{name.lstrip('/')}" for name in names)
    if not found:
        what = " and what the environment says of the storage" if is_url(pattern) else ""
        raise InputError(f"no file {paths.shown(pattern)}: check the name{what}.")
    return found


def state(name: str) -> list[Any]:
    """Returns what changes when a file does: size, and time of change or digest of the storage."""
    if not is_url(name):
        return list(paths.state(Path(name)))
    with _errors(name):
        info = _file_system(name.partition("://")[0]).info(name)
    mark = info.get("ETag") or info.get("mtime") or info.get("LastModified") or ""
    return [int(info["size"] or 0), str(mark)]


@contextlib.contextmanager
def opened(name: str) -> Iterator[IO[bytes]]:
    """Opens a file to read bytes at any place.

    Raises:
        InputError: it cannot be read.
    """
    with _errors(name):
        if not is_url(name):
            with open(name, "rb") as file:
                yield file
        else:
            with _file_system(name.partition("://")[0]).open(name, "rb") as file:
                yield file


def ranges(spans: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """Reads parts of files: name, first byte, number of bytes.

    Raises:
        InputError: one cannot be read.
    """
    if not spans:
        return []
    if not is_url(spans[0][0]):
        with _errors(spans[0][0]):
            return [os.pread(_descriptor(name), size, start) for name, start, size in spans]
    with _errors(spans[0][0]):
        fs = _file_system(spans[0][0].partition("://")[0])
        names, starts, sizes = zip(*spans, strict=True)
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        return [bytes(part) for part in fs.cat_ranges(list(names), list(starts), ends)]


def local(name: str, data_dir: str, fetches: bool) -> Path:
    """Returns a file's path, of a URL that of a copy below `data_dir`.

    Args:
        name: a path or URL.
        data_dir: below which copies are kept, in `remote/`, by their state.
        fetches: whether to make a copy that is not there.

    Raises:
        InputError: it cannot be read, or there is no copy yet.
    """
    if not is_url(name):
        return Path(name)
    key = hashlib.sha256(repr([name, state(name)]).encode()).hexdigest()[:16]
    place = paths.expand_user(data_dir) / "remote" / f"{key}-{name.rpartition('/')[2]}"
    if place.exists():
        return place
    if not fetches:
        raise InputError(
            f"{name} is not prepared, or changed since: run `./run.sh prepare` with the same "
            "--experiment and --set."
        )
    with opened(name) as source, paths.replacing(place) as partial, partial.open("wb") as target:
        while block := source.read(2**22):
            target.write(block)
    return place


@functools.lru_cache(256)
def _descriptor(name: str) -> int:
    return os.open(name, os.O_RDONLY)


def _file_system(scheme: str) -> Any:
    """Returns fsspec's file system of a scheme; instances are kept by process and thread there."""
    import fsspec

    package = PACKAGES.get(scheme)
    if scheme == "s3" and importlib.util.find_spec("s3fs") is None:
        return _arrow_s3(os.getpid())
    try:
        return fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"cannot read {scheme}:// URLs ({failures.sentence(error)}): install "
            f"{package or 'the package of fsspec for it'} into this environment."
        ) from None


@functools.lru_cache(1)
def _arrow_s3(process: int) -> Any:
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow import fs as arrow

    class S3(ArrowFSWrapper):
        protocol = "s3"
        root_marker = ""

    # What s3fs reads by itself.
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    client = arrow.S3FileSystem(region=region, endpoint_override=endpoint)
    return S3(client, skip_instance_cache=True)


@contextlib.contextmanager
def _errors(name: str) -> Iterator[None]:
    """Raises what a storage says as an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        is_storage = isinstance(error, OSError) or (
            is_url(name) and not isinstance(error, ArithmeticError | LookupError | TypeError)
        )
        if not is_storage:
            raise
        hint = "" if not is_url(name) else " (credentials and endpoint come from the environment)"
        reason = failures.sentence(cast(BaseException, error))
        raise InputError(f"cannot read {paths.shown(name)}: {reason}{hint}.") from None
