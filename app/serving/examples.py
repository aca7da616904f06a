"""The body of a `:classify` or `:regress` request, JSON, to serialised tf.Examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.serving.asked import Asked, Checks, asked
from app.serving.errors import WORDS, RequestError, WrongValueError, cut, naming
from app.serving.signatures import Signature
from app.serving.tensors import floats, integers, string, strings


def to_classify(given: Mapping[str, Any], signature: Signature, checks: Checks) -> Asked:
    """The serialised tf.Examples of a request.

    Raises:
        RequestError: they cannot be made, or the signature does not take them.
    """
    if len(signature.inputs) != 1 or next(iter(signature.inputs.values())).dtype != "string":
        raise RequestError(400, f"signature {signature.name!r} does not take examples.")
    examples = given.get("examples")
    if type(examples) is not list or not examples:
        what = "is missing" if "examples" not in given else "is not a list, or empty"
        raise RequestError(400, f'"examples" {what}: it must be a list of objects.')
    context = given.get("context", {})
    if type(context) is not dict:
        raise RequestError(400, f'"context" must be an object, not {WORDS[type(context)]}.')
    serialized = []
    for i, example in enumerate(examples):
        with naming(i):
            serialized.append(_example(example, context, checks))
    return asked({next(iter(signature.inputs)): strings(serialized)}, signature, checks)


def _example(given: Any, context: Mapping[str, Any], checks: Checks) -> bytes:
    """A tf.Example, serialised."""
    from tensorflow.core.example import example_pb2  # tf.train.Example, without TensorFlow's core

    if type(given) is not dict:
        raise WrongValueError(f"it must be an object with features, not {WORDS[type(given)]}")
    both = sorted(set(given) & set(context))
    if both:
        raise WrongValueError(f'feature "{cut(both[0])}" is in "context" too')
    example = example_pb2.Example()
    for name, value in {**context, **given}.items():
        _fill(example.features.feature, name, value if type(value) is list else [value], checks)
    if checks.name and checks.name not in example.features.feature:
        raise WrongValueError(f'it lacks the feature "{checks.name}"')
    return example.SerializeToString()


def _fill(features: Any, name: str, values: list[Any], checks: Checks) -> None:
    """One feature, of the type that its JSON has."""
    types = set(map(type, values))
    try:
        feature = features[name]
        if types <= {str, dict}:
            feature.bytes_list.value[:] = [string(value) for value in values]
        elif types <= {int, bool}:
            feature.int64_list.value[:] = integers(values, "int64").tolist()
        elif types <= {int, float}:
            feature.float_list.value[:] = floats(values, "float32").tolist()
        else:
            words = sorted({WORDS[kind] for kind in types})
            raise WrongValueError(
                f"it holds {' and '.join(words)}: strings, whole numbers or decimal numbers are "
                "taken, of one kind"
            )
    except WrongValueError as error:
        raise WrongValueError(f'feature "{cut(name)}": {error}') from None
    except UnicodeEncodeError:
        raise WrongValueError("the name of a feature holds half of a surrogate pair") from None
    if name == checks.name:
        if not feature.bytes_list.value:
            raise WrongValueError(f'feature "{name}" must be a string')
        for value in feature.bytes_list.value:
            checks.look(name, value)
