"""A value of JSON as an array that fits a tensor of the model; nothing is guessed."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from app.serving.errors import WrongValueError, shown

DEEPEST = 32  # lists in lists; no tensor has as many dimensions
FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def tensor(value: Any, dtype: str, wanted: Sequence[int | None] | None) -> np.ndarray:
    """A value in nested lists as an array of the type and shape that the signature says.

    Raises:
        WrongValueError: it is of another.
    """
    flat, shape = _shaped(value)
    array = _array(flat, dtype)
    if wanted is not None and not _fits(shape, wanted):
        told = ", ".join("?" if size is None else str(size) for size in wanted)
        raise WrongValueError(f"it must have the shape [{told}], not {list(shape)}")
    return array.reshape(shape)


def floats(flat: list[Any], dtype: str) -> np.ndarray:
    """Numbers as an array; one that only the narrower type makes infinite is refused."""
    try:
        wide = np.array(flat, np.float64)
    except OverflowError:
        raise WrongValueError(f"it holds a number too large for {dtype}") from None
    with np.errstate(over="ignore"):
        narrow = wide.astype(dtype)
    if np.isinf(narrow).sum() > np.isinf(wide).sum():
        worst = max((item for item in flat if math.isfinite(item)), key=abs)
        raise WrongValueError(f"{shown(worst)} is too large for {dtype}")
    return narrow


def integers(flat: list[Any], dtype: str) -> np.ndarray:
    """Whole numbers as an array."""
    bounds = np.iinfo(dtype)
    for item in (min(flat, default=0), max(flat, default=0)):
        if not bounds.min <= item <= bounds.max:
            raise WrongValueError(
                f"{shown(item)} does not fit {dtype}, which is {bounds.min} to {bounds.max}"
            )
    return np.array(flat, dtype)


def strings(items: Sequence[bytes]) -> np.ndarray:
    """An array of whole byte strings: one of NumPy's own would cut zeros off their ends."""
    array = np.empty(len(items), object)
    array[:] = items
    return array


def string(item: Any) -> bytes:
    """A JSON string in UTF-8, or the bytes of a {"b64": ...} object."""
    if type(item) is str:
        try:
            return item.encode()
        except UnicodeEncodeError:
            raise WrongValueError("its text holds half of a surrogate pair") from None
    if type(item) is not dict:
        raise WrongValueError(f"it must be a string, not {shown(item)}")
    if set(item) != {"b64"} or type(item["b64"]) is not str:
        raise WrongValueError('an object in place of a string must be {"b64": "..."}')
    try:
        code = "".join(item["b64"].split())
        padding = "=" * (-len(code) % 4)  # may be left out
        return base64.b64decode(code + padding, validate=True)
    except ValueError:
        raise WrongValueError('its "b64" is not base64') from None


def _shaped(value: Any) -> tuple[list[Any], tuple[int, ...]]:
    """The items of nested lists in one list, and how they were nested.

    Level by level, so that no nesting can exhaust the stack.
    """
    flat = [value]
    shape: list[int] = []
    while any(type(item) is list for item in flat):
        sizes = {len(item) if type(item) is list else -1 for item in flat}
        if len(sizes) > 1:
            raise WrongValueError("its lists are ragged: those of one level must be of one length")
        if len(shape) == DEEPEST:
            raise WrongValueError(f"its lists are nested deeper than {DEEPEST} levels")
        shape.append(sizes.pop())
        flat = list(itertools.chain.from_iterable(flat))
    return flat, tuple(shape)


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    pairs = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(w in (None, s) for s, w in pairs)


def _array(flat: list[Any], dtype: str) -> np.ndarray:
    """Items as an array; JSON's types must be those of the tensor."""
    if dtype == "string":
        return strings([string(item) for item in flat])
    if dtype in FLOATS:
        _must_be(flat, "a number", int, float)
        return floats(flat, dtype)
    if dtype in INTEGERS:
        _must_be(flat, "a whole number", int)
        return integers(flat, dtype)
    if dtype == "bool":
        _must_be(flat, "true or false", bool)
        return np.array(flat, bool)
    raise WrongValueError(f"a tensor of {dtype} cannot be given as JSON")


def _must_be(flat: list[Any], word: str, *types: type) -> None:
    if not set(map(type, flat)) <= set(types):  # True is an int to isinstance, and not here
        wrong = next(item for item in flat if type(item) not in types)
        raise WrongValueError(f"it must be {word}, not {shown(wrong)}")
