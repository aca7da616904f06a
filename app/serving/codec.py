"""Decodes the JSON bodies of requests to tensors, and encodes outputs as the bodies of answers.

Whatever a client sends ends as tensors that fit a signature, or as a RequestError.
https://www.tensorflow.org/tfx/serving/api_rest is the specification.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.serving import errors
from app.serving.model import Signature, Spec, Tensors, choose_signature
from app.serving.tensors import InputCheck, to_example, to_json, to_tensor

FILES = {b"\xff\xd8\xff": "a JPEG file", b"\x89PNG\r\n": "a PNG file", b"GIF8": "a GIF file",
         b"RIFF": "a WebP file"}  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """A decoded request.

    Attributes:
        signature: the name of the one to compute.
        tensors: by the names of the signature's inputs.
        rows: instances; None where they can be neither counted nor computed with others.
        by_rows: whether it had `instances`, and is answered with `predictions`.
        sizes: bytes of each instance, if it is a text; a longer one takes longer.
    """

    signature: str
    tensors: Tensors
    rows: int | None
    by_rows: bool = True
    sizes: Sequence[int] | None = None


def decode(
    body: bytes | bytearray, verb: str, signatures: Mapping[str, Signature], check: InputCheck
) -> Inputs:
    """Decodes the body of a request for a verb.

    Raises:
        RequestError: it is malformed, or does not fit the signature.
    """
    request = parse(body)
    signature = choose_signature(signatures, verb, request.get("signature_name"))
    decode_tensors = decode_predict if verb == "predict" else decode_examples
    return decode_tensors(request, signature, check)


def parse(body: bytes | bytearray) -> dict[str, Any]:
    """Parses a body as a JSON object.

    As in TensorFlow Serving, NaN and Infinity are numbers, for inputs that are floats.

    Raises:
        RequestError: it is something else.
    """
    for magic, what in FILES.items():
        if body.startswith(magic):
            raise errors.FILE_AS_BODY(what=what, right=errors.BODIES["image"])
    if body.startswith(b"\x1f\x8b"):
        raise errors.GZIP_AS_BODY()
    try:
        request = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise errors.NOT_UTF8(byte=error.start + 1) from None
    except RecursionError:
        raise errors.NESTED_TOO_DEEPLY() from None
    except json.JSONDecodeError as error:
        raise errors.NOT_JSON(reason=error) from None
    except ValueError:
        raise errors.TOO_MANY_DIGITS() from None
    if type(request) is not dict:
        raise errors.NOT_AN_OBJECT(given=errors.kind(request))
    return request


def decode_predict(request: Mapping[str, Any], signature: Signature, check: InputCheck) -> Inputs:
    """Returns the tensors of a `:predict` request.

    Raises:
        RequestError: they do not fit the signature.
    """
    formats = [key for key in ("instances", "inputs") if key in request]
    if len(formats) != 1:
        raise errors.NOT_ONE_FORMAT(given="both" if formats else "neither")
    by_rows = formats == ["instances"]
    split = _split_instances if by_rows else _split_inputs
    values = split(request[formats[0]], signature)
    tensors = {
        name: _to_tensor(values[name], name, spec, check, by_rows)
        for name, spec in signature.inputs.items()
    }
    if any(x.shape[:1] == (0,) for x in tensors.values()):
        raise errors.EMPTY(format=formats[0])
    return _counted(tensors, signature, check, by_rows)


def decode_examples(request: Mapping[str, Any], signature: Signature, check: InputCheck) -> Inputs:
    """Returns the serialised tf.Examples of a `:classify` or `:regress` request.

    Raises:
        RequestError: they cannot be made, or the signature does not take them.
    """
    if len(signature.inputs) != 1 or next(iter(signature.inputs.values())).dtype != "string":
        raise errors.TAKES_NO_EXAMPLES(name=signature.name)
    examples, context = request.get("examples"), request.get("context", {})
    if type(examples) is not list or not examples:
        what = "is missing" if "examples" not in request else "is not a list, or empty"
        raise errors.NO_EXAMPLES(what=what)
    if type(context) is not dict:
        raise errors.CONTEXT_TYPE(given=errors.kind(context))
    serialized = []
    for i, example in enumerate(examples):
        with errors.within("instance", i):
            serialized.append(to_example(example, context, check).SerializeToString())
    tensors = {next(iter(signature.inputs)): np.array(serialized, object)}
    return _counted(tensors, signature, check)


def encode(verb: str, outputs: Tensors, by_rows: bool) -> bytes:
    """Encodes outputs as TensorFlow Serving does, with NaN and Infinity.

    Raises:
        RequestError: the outputs are not what the verb returns.
    """
    answer: dict[str, Any]
    if verb != "predict":
        answer = {"results": (_classify if verb == "classify" else _regress)(outputs)}
    elif by_rows:
        answer = {"predictions": _predict(outputs)}
    else:
        columns = {name: to_json(name, value) for name, value in outputs.items()}
        answer = {"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}
    text = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def _split_instances(instances: Any, signature: Signature) -> dict[str, Any]:
    """Returns the values of all instances by the names of the inputs."""
    names = list(signature.inputs)
    if type(instances) is not list:
        raise errors.INSTANCES_TYPE(given=errors.kind(instances))
    scalars = [name for name, spec in signature.inputs.items() if spec.shape == ()]
    if scalars:
        raise errors.TAKES_NO_BATCH(name=signature.name, scalar=scalars[0])
    if not instances:
        raise errors.EMPTY(format="instances")
    if not _is_named(instances[0]):
        return {_only_name(names, "instance 0", instances[0]): instances}
    for i, instance in enumerate(instances):
        if not _is_named(instance):
            raise errors.INSTANCE_TYPE(i=i, given=errors.kind(instance))
        with errors.within("instance", i):
            _must_have(names, instance)
    return {name: [instance[name] for instance in instances] for name in names}


def _split_inputs(inputs: Any, signature: Signature) -> Mapping[str, Any]:
    """Returns the values of whole tensors by the names of the inputs."""
    names = list(signature.inputs)
    if not _is_named(inputs):
        return {_only_name(names, '"inputs"', inputs): inputs}
    with errors.within('"inputs"'):
        _must_have(names, inputs)
    return inputs


def _is_named(value: Any) -> bool:
    """Whether a value is an object with the names of inputs, not one in place of a string."""
    return type(value) is dict and set(value) != {"b64"}


def _only_name(names: Sequence[str], what: str, value: Any) -> str:
    if len(names) != 1:
        raise errors.UNNAMED_INPUTS(what=what, names=_quoted(names), given=errors.kind(value))
    return names[0]


def _must_have(names: Sequence[str], values: Mapping[str, Any]) -> None:
    missing = [name for name in names if name not in values]
    if missing:
        raise errors.INPUT_MISSING(name=_quoted(missing))
    unknown = [name for name in values if name not in names]
    if unknown:
        raise errors.NO_SUCH_INPUT(name=errors.cut(unknown[0]), names=_quoted(names))


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _to_tensor(value: Any, name: str, spec: Spec, check: InputCheck, by_rows: bool) -> np.ndarray:
    """Converts one input; an error names the instance at fault, if there is one."""
    try:
        array = to_tensor(value, spec.dtype, spec.shape)
    except errors.RequestError as error:
        if type(value) is list and (spec.is_batch or (by_rows and spec.shape is None)):
            _raise_for_instance(value, spec)
        raise error.within(f'input "{name}"') from None
    if spec.dtype == "string":
        for i, item in enumerate(array.ravel()):
            with errors.within("instance", i):
                check(name, item)
    return array


def _raise_for_instance(instances: list[Any], spec: Spec) -> None:
    shapes = []
    for i, instance in enumerate(instances):
        with errors.within("instance", i):
            shapes.append(to_tensor(instance, spec.dtype, spec.shape and spec.shape[1:]).shape)
        if shapes[i] != shapes[0]:
            raise errors.UNEQUAL_SHAPES(i=i, given=list(shapes[i]), first=list(shapes[0]))


def _counted(
    tensors: Tensors, signature: Signature, check: InputCheck, by_rows: bool = True
) -> Inputs:
    """Returns the inputs with the number of instances and their sizes."""
    counts = {value.shape[0] if value.ndim else 1 for value in tensors.values()}
    rows = counts.pop() if signature.is_batched and len(counts) == 1 else None
    sizes = None
    if rows is not None and check.kind == "text":
        strings = [x.reshape(rows, -1) for x in tensors.values() if x.dtype == object]
        sizes = [sum(map(len, itertools.chain(*row))) for row in zip(*strings, strict=True)]
    return Inputs(signature.name, tensors, rows, by_rows, sizes or None)


def _predict(outputs: Tensors) -> list[Any]:
    """Returns a value per instance, or an object with the names of several outputs."""
    counts = {value.shape[0] if value.ndim else None for value in outputs.values()}
    if len(counts) != 1 or None in counts:
        raise errors.NO_ROWS()
    columns = [to_json(name, value) for name, value in outputs.items()]
    if len(columns) == 1:
        return columns[0]
    rows = zip(*columns, strict=True)
    return [dict(zip(outputs, row, strict=True)) for row in rows]


def _classify(outputs: Tensors) -> list[Any]:
    """Returns pairs of label and score per example; without labels they are empty strings."""
    labels, scores = outputs.get("classes"), outputs.get("scores")
    known = next((value for value in (scores, labels) if value is not None), None)
    if known is None or known.ndim != 2 or (labels is not None and labels.shape != known.shape):
        raise errors.NO_CLASSES()
    labels = np.full(known.shape, b"", object) if labels is None else labels
    scores = np.zeros(known.shape) if scores is None else scores
    rows = zip(to_json("classes", labels), to_json("scores", scores), strict=True)
    return [[list(pair) for pair in zip(*row, strict=True)] for row in rows]


def _regress(outputs: Tensors) -> list[Any]:
    """Returns a number per example."""
    value = outputs.get("outputs")
    if value is None or not value.ndim or value.size != len(value):
        raise errors.NO_REGRESSION()
    return to_json("outputs", value.reshape(-1))
