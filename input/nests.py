"""Checks and stacks examples: nests of arrays, as dictionaries and tuples with arrays as leaves.

A list is an array, not a nest. Order is that of `tf.nest`: dictionaries by their sorted keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

STEP = 8  # padded lengths are rounded up to a multiple, so that there are fewer shapes


RANKS = {"b": 0, "i": 1, "u": 1, "f": 2}  # kinds of numbers: a lower one is converted


class Spec(NamedTuple):
    """One array of an example.

    Attributes:
        shape: without the batch's dimension; None: differs from example to example, and is padded.
        dtype: a name that NumPy knows, or `string`: bytes, or text in UTF-8.
        pad: the value of what is filled up.
    """

    shape: tuple[int | None, ...]
    dtype: str
    pad: float = 0


def flatten(nest: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of a nest in order, each with its path, as `['image']` or `[0]`."""
    if isinstance(nest, dict):
        for key in sorted(nest):
            yield from flatten(nest[key], f"{path}[{key!r}]")
    elif isinstance(nest, tuple) and not isinstance(nest, Spec):
        for place, part in enumerate(nest):
            yield from flatten(part, f"{path}[{place}]")
    else:
        yield path, nest


def pack(like: Any, leaves: Iterator[Any]) -> Any:
    """Returns a nest of the same structure, with these leaves in order."""
    if isinstance(like, dict):
        found = {key: pack(like[key], leaves) for key in sorted(like)}
        return {key: found[key] for key in like}
    if isinstance(like, tuple) and not isinstance(like, Spec):
        return tuple(pack(part, leaves) for part in like)
    return next(leaves)


def infer(nest: Any, what: str) -> Any:
    """Returns the nest of Spec that an example has: float32, int32, uint8, bool or string.

    Raises:
        ValueError: says which leaf is none of these.
    """
    return pack(nest, (_infer(leaf, what + path) for path, leaf in flatten(nest)))


def _infer(leaf: Any, what: str) -> Spec:
    array = _as_array(leaf)
    kind = "string" if array.dtype == object else array.dtype.kind
    dtypes = {"string": "string", "f": "float32", "i": "int32", "u": "int32", "b": "bool"}
    if kind not in dtypes:
        raise ValueError(f"the {what} are {array.dtype}: give numbers, bytes or texts")
    return Spec(array.shape, "uint8" if array.dtype == np.uint8 else dtypes[kind])


def fit(nest: Any, specs: Any, what: str) -> list[np.ndarray]:
    """Returns the leaves of an example as arrays of the specs' types.

    Raises:
        ValueError: says where structure, shape or type differ, with both.
    """
    found, wanted = list(flatten(nest)), list(flatten(specs))
    if [path for path, _ in found] != [path for path, _ in wanted]:
        raise ValueError(f"the {what} have the parts {_parts(found)}, not {_parts(wanted)}")
    pairs = zip(found, wanted, strict=True)
    return [_fit(leaf, spec, what + path) for (path, leaf), (_, spec) in pairs]


def _parts(leaves: Sequence[tuple[str, Any]]) -> str:
    return ", ".join(path or "(one array)" for path, _ in leaves) or "none"


def _fit(leaf: Any, spec: Spec, what: str) -> np.ndarray:
    try:
        array = _as_array(leaf)
    except ValueError:
        raise ValueError(f"the {what} are rows of different lengths: pad them") from None
    if not array.ndim and spec.shape == (1,):
        array = array[np.newaxis]
    is_same = len(array.shape) == len(spec.shape) and all(
        b is None or a == b for a, b in zip(array.shape, spec.shape, strict=False)
    )
    if not is_same:
        shape = [x if x is not None else "any" for x in spec.shape]
        raise ValueError(
            f"the {what} have the shape {list(array.shape)}, not "
            f"[{', '.join(map(str, shape))}] as the others"
        )
    if spec.dtype == "string":
        if array.dtype != object:
            raise ValueError(f"the {what} are {array.dtype}, not bytes or text")
        return array
    dtype = np.dtype(spec.dtype)
    if array.dtype == object or RANKS.get(array.dtype.kind, 9) > RANKS[dtype.kind]:
        raise ValueError(f"the {what} are {array.dtype}, not {dtype} as the others")
    if dtype.kind in "iu" and array.size:
        bounds = np.iinfo(dtype)
        if array.min() < bounds.min or array.max() > bounds.max:
            raise ValueError(f"the {what} have numbers beyond those of {dtype}")
    return array.astype(dtype, copy=False)


def _as_array(leaf: Any) -> np.ndarray:
    """Returns an array of numbers, or of bytes as objects."""
    if isinstance(leaf, bytes):
        return np.array(leaf, object)
    if isinstance(leaf, str):
        return np.array(leaf.encode("utf-8", "surrogateescape"), object)
    array = np.asarray(leaf)
    if array.dtype.kind in "USO":
        texts = [x.encode() if isinstance(x, str) else x for x in array.ravel().tolist()]
        if not all(isinstance(x, bytes) for x in texts):
            raise ValueError("rows of different lengths, or values that are no numbers")
        flat = np.empty(len(texts), object)
        flat[:] = texts
        return flat.reshape(array.shape)
    return array


def stack(examples: Sequence[Sequence[np.ndarray]], specs: Any) -> list[np.ndarray]:
    """Stacks the leaves of examples to [b, ...]; pads dimensions of None to the batch's longest.

    Args:
        examples: leaves of each, as `fit` returns them.
        specs: nest of Spec.
    """
    columns = zip(*examples, strict=True)
    pairs = zip(columns, flatten(specs), strict=True)
    return [_stack(column, spec) for column, (_, spec) in pairs]


def _stack(arrays: Sequence[np.ndarray], spec: Spec) -> np.ndarray:
    if None not in spec.shape:
        return np.stack(arrays)
    longest = np.max([array.shape for array in arrays], 0)
    shape = [
        -(-int(most) // STEP) * STEP if size is None else size
        for most, size in zip(longest, spec.shape, strict=True)
    ]
    dtype = object if spec.dtype == "string" else spec.dtype
    fill = b"" if spec.dtype == "string" else spec.pad
    batch = np.full([len(arrays), *shape], fill, dtype)
    for place, array in enumerate(arrays):
        batch[place][tuple(map(slice, array.shape))] = array
    return batch
