"""The body of a `:predict` request, JSON, to tensors that fit the signature.

Whatever a client sends ends as those, or as a RequestError.
https://www.tensorflow.org/tfx/serving/api_rest is the specification.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.serving.asked import Asked, Checks, asked
from app.serving.content import must_be_text
from app.serving.errors import WORDS, RequestError, WrongValueError, cut, listed, naming
from app.serving.signatures import Signature, Spec
from app.serving.tensors import tensor


def parse(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object of a request.

    As TensorFlow Serving does, NaN and Infinity are numbers, for inputs that are floats.

    Raises:
        RequestError: it is none.
    """
    must_be_text(body)
    try:
        given = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the body is not UTF-8 (at its byte {error.start + 1}).") from None
    except RecursionError:
        raise RequestError(400, "the body's JSON is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise RequestError(400, f"the body is not JSON: {error}.") from None
    except ValueError:
        raise RequestError(400, "the body holds a number with too many digits.") from None
    if type(given) is not dict:
        raise RequestError(400, f"the body must be a JSON object, not {WORDS[type(given)]}.")
    return given


def signature_name(given: Mapping[str, Any]) -> str | None:
    """The signature a request names, if it does."""
    name = given.get("signature_name")
    if name is not None and type(name) is not str:
        raise RequestError(400, f"signature_name must be a string, not {WORDS[type(name)]}.")
    return name or None


def to_predict(given: Mapping[str, Any], signature: Signature, checks: Checks) -> Asked:
    """The tensors of a `:predict` request.

    Raises:
        RequestError: they do not fit the signature.
    """
    keys = [key for key in ("instances", "inputs") if key in given]
    if len(keys) != 1:
        raise RequestError(
            400, 'the body must have either "instances" (a list, an item an instance) or "inputs" '
            f"(whole tensors), not {'both' if keys else 'neither'}.",
        )  # fmt: skip
    is_row = keys == ["instances"]
    tensors = (_rows if is_row else _columns)(given[keys[0]], signature, checks)
    if any(x.shape[:1] == (0,) for x in tensors.values()):
        raise RequestError(400, f'"{keys[0]}" is empty: it must hold an instance at least.')
    return asked(tensors, signature, checks, is_row)


def _rows(instances: Any, signature: Signature, checks: Checks) -> dict[str, np.ndarray]:
    """Tensors from a list with an item an instance."""
    if type(instances) is not list:
        raise RequestError(400, f'"instances" must be a list, not {WORDS[type(instances)]}.')
    scalars = [name for name, spec in signature.inputs.items() if spec.shape == ()]
    if scalars:
        raise RequestError(
            400, f'signature {signature.name!r} takes one item, not a batch: send {{"inputs": '
            f'{{"{scalars[0]}": ...}}}} instead of "instances".',
        )  # fmt: skip
    if not instances:
        raise RequestError(400, '"instances" is empty: it must hold an instance at least.')
    columns = _split(instances, list(signature.inputs))
    return {
        name: _stacked(columns[name], name, spec, checks) for name, spec in signature.inputs.items()
    }


def _split(instances: list[Any], names: Sequence[str]) -> dict[str, list[Any]]:
    """The values of all instances by the names of the inputs."""
    if not _is_named(instances[0]):
        if len(names) != 1:
            raise RequestError(
                400, f"instance 0 must be an object with the inputs {listed(names)}, not "
                f"{WORDS[type(instances[0])]}.",
            )  # fmt: skip
        return {names[0]: instances}
    for i, instance in enumerate(instances):
        if not _is_named(instance):
            raise RequestError(
                400, f"instance {i} is {WORDS[type(instance)]}, and instance 0 an object with "
                "the names of the inputs: send one or the other.",
            )  # fmt: skip
        with naming(i):
            _must_be_named(instance, names)
    return {name: [instance[name] for instance in instances] for name in names}


def _columns(inputs: Any, signature: Signature, checks: Checks) -> dict[str, np.ndarray]:
    """Tensors that are given whole."""
    names = list(signature.inputs)
    if not _is_named(inputs):
        if len(names) != 1:
            raise RequestError(
                400, f'"inputs" must be an object with the inputs {listed(names)}, not '
                f"{WORDS[type(inputs)]}.",
            )  # fmt: skip
        inputs = {names[0]: inputs}
    try:
        _must_be_named(inputs, names)
    except WrongValueError as error:
        raise RequestError(400, f'"inputs": {error}.') from None
    return {
        name: _stacked(inputs[name], name, spec, checks, is_row=False)
        for name, spec in signature.inputs.items()
    }


def _stacked(value: Any, name: str, spec: Spec, checks: Checks, is_row: bool = True) -> np.ndarray:
    """One tensor; if it cannot be, what is wrong is looked for among its instances."""
    try:
        array = tensor(value, spec.dtype, spec.shape)
    except WrongValueError as error:
        if type(value) is list and (spec.is_batch or (is_row and spec.shape is None)):
            _blame(value, spec)
        raise RequestError(400, f'input "{name}": {error}.') from None
    if spec.dtype == "string":
        for i, item in enumerate(array.ravel()):
            with naming(i):
                checks.look(name, item)
    return array


def _blame(instances: list[Any], spec: Spec) -> None:
    """Raises a RequestError that names the first instance that is wrong, if one is by itself."""
    shapes = []
    for i, instance in enumerate(instances):
        with naming(i):
            shapes.append(tensor(instance, spec.dtype, spec.shape and spec.shape[1:]).shape)
        if shapes[i] != shapes[0]:
            raise RequestError(
                400, f"instance {i} has the shape {list(shapes[i])}, and instance 0 "
                f"{list(shapes[0])}: all must have one.",
            )  # fmt: skip


def _is_named(value: Any) -> bool:
    """Whether it is an object with the names of inputs, not one in place of a string."""
    return type(value) is dict and set(value) != {"b64"}


def _must_be_named(given: Mapping[str, Any], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in given]
    if missing:
        raise WrongValueError(f"it lacks the input {listed(missing)}")
    unknown = [name for name in given if name not in names]
    if unknown:
        raise WrongValueError(f'there is no input "{cut(unknown[0])}", but {listed(names)}')
