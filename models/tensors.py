"""Reads weights as `transformers` saves them: safetensors, in one file or in several.

A file holds 8 bytes with the length of the header, the header, JSON with the type, shape and
offsets of each tensor, and then the tensors. Headers are read and checked at once, a tensor when it
is needed. Other formats are not read: a pickle (pytorch_model.bin) may run code.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from models import ModelError

TYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
}  # fmt: skip
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST_HEADER = 10_000_000  # bytes; of BERT-large it has 50,000
POINTER = b"version https://git-lfs"  # begins what git-lfs leaves in place of a file
UNFETCHED = "{} is what git-lfs leaves in place of the file: run `git lfs pull` there."
OTHERS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
CONVERT = (
    "python -c \"from transformers import AutoModel; AutoModel.from_pretrained('{0}')"
    ".save_pretrained('{0}')\""
)


@dataclass(frozen=True)
class Entry:
    """Where a tensor is: `start` is its offset from the beginning of the file, in bytes."""

    path: Path
    kind: str
    shape: tuple[int, ...]
    start: int

    def read(self) -> np.ndarray:
        """Reads the tensor, as float32.

        Raises:
            ModelError: the file cannot be read.
        """
        try:
            found = np.fromfile(
                self.path, TYPES[self.kind], math.prod(self.shape), offset=self.start
            )
        except OSError as error:
            raise ModelError(f"cannot read {self.path} ({error.strerror}).") from None
        return found.reshape(self.shape).astype(np.float32)


def entries(folder: Path) -> dict[str, Entry]:
    """Returns every tensor of a folder, by name.

    Raises:
        ModelError: the folder has no safetensors, or a file is damaged.
    """
    if (folder / INDEX).exists() and not (folder / WHOLE).exists():
        return _sharded(folder / INDEX)
    if not (folder / WHOLE).exists():
        others = [name for name in OTHERS if (folder / name).exists()]
        if others:
            raise ModelError(
                f"{folder} has its weights in {others[0]} only, which is not read (reading "
                f"such a file may run code in it): if you trust it, and have `transformers` and "
                f"its framework, write {WHOLE} beside it: {CONVERT.format(folder)}"
            )
    return _entries(folder / WHOLE)


def _sharded(index: Path) -> dict[str, Entry]:
    files = load_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in files.values()
    ):
        raise ModelError(f"{index} must name a file of its folder for each tensor (weight_map).")
    found: dict[str, Entry] = {}
    for name in sorted(set(files.values())):
        found |= _entries(index.parent / name)
    lacking = sorted(files.keys() - found.keys())
    if lacking:
        raise ModelError(
            f"{index} names {len(lacking)} tensors that its files do not hold, {lacking[0]} first: "
            "fetch the folder again."
        )
    return found


def _entries(path: Path) -> dict[str, Entry]:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(8)
            if POINTER.startswith(start) and len(start) == 8:
                raise ModelError(UNFETCHED.format(path))
            length = int.from_bytes(start, "little")
            if length > min(size - 8, LONGEST_HEADER) or len(start) < 8:
                raise ModelError(_damage(path, f"a header of {length:,} bytes in {size:,}"))
            header = json.loads(file.read(length))
        return _checked(path, header, 8 + length, size)
    except OSError as error:
        raise ModelError(f"cannot read {path} ({error.strerror}): see model.init_from.") from None
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"an invalid header, {type(error).__name__}: {str(error)[:100]}"
        raise ModelError(_damage(path, reason)) from None


def _checked(path: Path, header: dict[str, Any], data: int, size: int) -> dict[str, Entry]:
    """Returns a header's tensors, which must follow one another to the end of the file."""
    found, places = {}, []
    for name, about in header.items():
        if name == "__metadata__":
            continue
        kind, shape, (begin, end) = about["dtype"], tuple(about["shape"]), about["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise ModelError(_damage(path, f"tensor {name!r} with shape {shape}, at {begin}-{end}"))
        if kind in TYPES and end - begin != math.prod(shape) * np.dtype(TYPES[kind]).itemsize:
            reason = f"tensor {name!r} of {kind} {list(shape)} in {end - begin:,} bytes"
            raise ModelError(_damage(path, reason))
        places.append((begin, end, name))
        found[name] = Entry(path, kind, shape, data + begin)
    last = 0
    for begin, end, name in sorted(places):
        if begin != last or end < begin:
            reason = f"tensor {name!r} at {begin:,} to {end:,}, where {last:,} is next"
            raise ModelError(_damage(path, reason))
        last = end
    if data + last != size:
        raise ModelError(_damage(path, f"tensors up to byte {data + last:,} of {size:,}"))
    return found


def _damage(path: Path, reason: str) -> str:
    return f"{path} is cut short or damaged: it has {reason}. Fetch it again (see model.init_from)."


def load_json(path: Path) -> dict[str, Any]:
    """Reads the object of a JSON file.

    Raises:
        ModelError: the file cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if text.startswith(POINTER.decode()):
            raise ModelError(UNFETCHED.format(path))
        found = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path} ({error}): see model.init_from.") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} must hold a JSON object, not a {type(found).__name__}.")
    return found
