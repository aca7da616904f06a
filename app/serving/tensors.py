"""Converts values of JSON to tensors and tf.Examples, and tensors to values of JSON.

Nothing is guessed: what a client sends must be of the type and shape that the model takes.
"""

import base64
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from app.serving import errors
from input.raw import FIELDS, Limits

DEEPEST = 32  # lists in lists; no tensor has as many dimensions
FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@dataclass(frozen=True)
class InputCheck:
    """Checks images or texts before TensorFlow sees them.

    Attributes:
        kind: of the model, `text` or `image`; None: nothing is checked.
        limits: of an image or a text.
    """

    kind: str | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def name(self) -> str | None:
        """The name of the input, or of the feature, that is checked."""
        return FIELDS[self.kind] if self.kind else None

    def __call__(self, name: str, value: bytes) -> None:
        """Checks one value of an input.

        Raises:
            RequestError: it is damaged, empty, too large or of another kind.
        """
        if self.kind and name == self.name:
            try:
                self.limits.check(self.kind, value)
            except ValueError as error:
                raise errors.BAD_EXAMPLE(reason=error) from None


def to_tensor(value: Any, dtype: str, shape: Sequence[int | None] | None) -> np.ndarray:
    """Converts nested lists to an array.

    Args:
        value: of JSON.
        dtype: TensorFlow's name of the wanted type.
        shape: the wanted one, with None for free dimensions; None itself if the rank is free.

    Raises:
        RequestError: the value is of another type or shape.
    """
    flat, given = _flatten(value)
    array = _to_array(flat, dtype)
    if shape is not None and not _fits(given, shape):
        wanted = ", ".join("?" if size is None else str(size) for size in shape)
        raise errors.WRONG_SHAPE(wanted=wanted, given=list(given))
    return array.reshape(given)


def to_example(given: Any, context: Mapping[str, Any], check: InputCheck) -> Any:
    """Converts an object with features, and those of all examples, to a tf.Example.

    Raises:
        RequestError: a feature is missing, given twice, or of no type or several.
    """
    from tensorflow.core.example import example_pb2  # tf.train.Example, without TensorFlow's core

    if type(given) is not dict:
        raise errors.EXAMPLE_TYPE(given=errors.kind(given))
    both = sorted(set(given) & set(context))
    if both:
        raise errors.FEATURE_TWICE(name=errors.cut(both[0]))
    example = example_pb2.Example()
    features = example.features.feature
    for name, value in {**context, **given}.items():
        try:
            feature = features[name]
        except UnicodeEncodeError:
            raise errors.FEATURE_NAME() from None
        with errors.within("feature", f'"{errors.cut(name)}"'):
            _fill(feature, value if type(value) is list else [value])
    if check.name:
        if check.name not in features:
            raise errors.FEATURE_MISSING(name=check.name)
        if not features[check.name].bytes_list.value:
            raise errors.FEATURE_NOT_STRING(name=check.name)
        for item in features[check.name].bytes_list.value:
            check(check.name, item)
    return example


def to_json(name: str, tensor: np.ndarray) -> Any:
    """Converts an output to nested lists; strings of a name in `_bytes` become base64.

    Raises:
        RequestError: JSON has no such type.
    """
    convert: Callable[[Any], Any]
    if tensor.dtype.kind in "OS":
        convert = _encode_base64 if name.endswith("_bytes") else _decode_text
    elif tensor.dtype.name in ("float16", "float32", "bfloat16"):
        convert = _shortest_decimal
    elif tensor.dtype.kind in "biuf":
        return tensor.tolist()
    else:
        raise errors.OUTPUT_NOT_IN_JSON(name=name, dtype=tensor.dtype.name)
    converted = np.array([convert(item) for item in tensor.ravel()], object)
    return converted.reshape(tensor.shape).tolist()


def _flatten(value: Any) -> tuple[list[Any], tuple[int, ...]]:
    """Returns the items of nested lists in one list, and the shape of the nesting.

    Goes level by level, so that no nesting can exhaust the stack.
    """
    flat = [value]
    shape: list[int] = []
    while any(type(item) is list for item in flat):
        sizes = {len(item) if type(item) is list else -1 for item in flat}
        if len(sizes) > 1:
            raise errors.RAGGED()
        if len(shape) == DEEPEST:
            raise errors.LISTS_TOO_DEEP(most=DEEPEST)
        shape.append(sizes.pop())
        flat = list(itertools.chain.from_iterable(flat))
    return flat, tuple(shape)


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    pairs = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(w in (None, s) for s, w in pairs)


def _to_array(flat: list[Any], dtype: str) -> np.ndarray:
    """Converts items, whose JSON types must be those of the tensor."""
    if dtype == "string":
        # Of objects: NumPy's own type of strings cuts zeros off their ends.
        return np.array([_to_bytes(item) for item in flat], object)
    if dtype in FLOATS:
        _must_be(flat, "a number", int, float)
        return _to_floats(flat, dtype)
    if dtype in INTEGERS:
        _must_be(flat, "a whole number", int)
        return _to_integers(flat, dtype)
    if dtype == "bool":
        _must_be(flat, "true or false", bool)
        return np.array(flat, bool)
    raise errors.NOT_IN_JSON(dtype=dtype)


def _must_be(flat: list[Any], wanted: str, *types: type) -> None:
    if not set(map(type, flat)) <= set(types):  # True is an int to isinstance, but not to JSON
        wrong = next(item for item in flat if type(item) not in types)
        raise errors.WRONG_TYPE(wanted=wanted, given=errors.shown(wrong))


def _to_floats(flat: list[Any], dtype: str) -> np.ndarray:
    """Converts numbers; one that is infinite only in the narrower type is refused."""
    try:
        wide = np.array(flat, np.float64)
    except OverflowError:
        raise errors.SOME_TOO_LARGE(dtype=dtype) from None
    with np.errstate(over="ignore"):
        narrow = wide.astype(dtype)
    if np.isinf(narrow).sum() > np.isinf(wide).sum():
        worst = max((item for item in flat if math.isfinite(item)), key=abs)
        raise errors.TOO_LARGE(value=errors.shown(worst), dtype=dtype)
    return narrow


def _to_integers(flat: list[Any], dtype: str) -> np.ndarray:
    bounds = np.iinfo(dtype)
    for item in (min(flat, default=0), max(flat, default=0)):
        if not bounds.min <= item <= bounds.max:
            raise errors.OUT_OF_RANGE(
                value=errors.shown(item), dtype=dtype, least=bounds.min, most=bounds.max
            )
    return np.array(flat, dtype)


def _to_bytes(item: Any) -> bytes:
    """Returns a string in UTF-8, or the bytes of a {"b64": ...} object."""
    if type(item) is str:
        try:
            return item.encode()
        except UnicodeEncodeError:
            raise errors.HALF_SURROGATE() from None
    if type(item) is not dict:
        raise errors.WRONG_TYPE(wanted="a string", given=errors.shown(item))
    if set(item) != {"b64"} or type(item["b64"]) is not str:
        raise errors.NOT_B64()
    try:
        code = "".join(item["b64"].split())
        padding = "=" * (-len(code) % 4)  # may be left out
        return base64.b64decode(code + padding, validate=True)
    except ValueError:
        raise errors.NOT_BASE64() from None


def _fill(feature: Any, values: list[Any]) -> None:
    types = set(map(type, values))
    if types <= {str, dict}:
        feature.bytes_list.value[:] = [_to_bytes(value) for value in values]
    elif types <= {int, bool}:
        feature.int64_list.value[:] = _to_integers(values, "int64").tolist()
    elif types <= {int, float}:
        feature.float_list.value[:] = _to_floats(values, "float32").tolist()
    else:
        given = " and ".join(sorted({errors.kind(value) for value in values}))
        raise errors.MIXED_FEATURE(given=given)


def _shortest_decimal(item: Any) -> float:
    """Returns the shortest number that is this one in its precision: 0.2, not 0.2000000029."""
    return float(str(item))


def _decode_text(item: bytes) -> str:
    return item.decode("utf-8", "replace")


def _encode_base64(item: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(item).decode()}
