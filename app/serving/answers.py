"""What the API answers, JSON as TensorFlow Serving writes it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from app.serving.errors import RequestError
from app.serving.signatures import Tensors
from app.serving.versions import Found


def written(verb: str, outputs: Tensors, is_row: bool) -> bytes:
    """Outputs as the answer to a verb.

    Raises:
        RequestError: the signature's outputs are not what the verb tells.
    """
    if verb == "predict":
        return predictions(outputs, is_row)
    return (classifications if verb == "classify" else regressions)(outputs)


def predictions(outputs: Tensors, is_row: bool) -> bytes:
    """The answer to `:predict`.

    Raises:
        RequestError: rows were asked for, and the outputs have none.
    """
    if not is_row:
        plain = {name: _plain(name, value) for name, value in outputs.items()}
        return _json({"outputs": plain if len(plain) > 1 else next(iter(plain.values()))})
    counts = {value.shape[0] if value.ndim else None for value in outputs.values()}
    if len(counts) != 1 or None in counts:
        raise RequestError(
            400, 'the outputs of this signature have no row an instance: send "inputs" instead of '
            '"instances".',
        )  # fmt: skip
    columns = [_plain(name, value) for name, value in outputs.items()]
    if len(columns) == 1:
        return _json({"predictions": columns[0]})
    rows = zip(*columns, strict=True)
    return _json({"predictions": [dict(zip(outputs, row, strict=True)) for row in rows]})


def classifications(outputs: Tensors) -> bytes:
    """The answer to `:classify`: pairs of label and score; a label that is not told is empty."""
    labels, scores = outputs.get("classes"), outputs.get("scores")
    known = next((value for value in (scores, labels) if value is not None), None)
    if known is None or known.ndim != 2 or (labels is not None and labels.shape != known.shape):
        raise RequestError(400, "this signature's outputs are no classes and scores of examples.")
    names = _plain("classes", labels) if labels is not None else np.full(known.shape, "").tolist()
    values: Any = _plain("scores", scores) if scores is not None else np.zeros(known.shape).tolist()
    pairs = [[[n, v] for n, v in zip(*row, strict=True)] for row in zip(names, values, strict=True)]
    return _json({"results": pairs})


def regressions(outputs: Tensors) -> bytes:
    """The answer to `:regress`: a number an example."""
    value = outputs.get("outputs")
    if value is None or not value.ndim or value.size != len(value):
        raise RequestError(400, "this signature's outputs are not a number an example.")
    return _json({"results": _plain("outputs", value.reshape(-1))})


def problem(sentence: str) -> bytes:
    """The body of every answer that is an error."""
    return _json({"error": sentence})


def status(found: Found) -> str:
    """The model's state."""
    fine = {"error_code": "OK", "error_message": ""}
    version = {"version": str(found.version), "state": "AVAILABLE", "status": fine}
    return json.dumps({"model_version_status": [version]}, indent=1)


def metadata(found: Found, definitions: Mapping[str, Any]) -> str:
    """The SignatureDefs, as protocol buffers are written in JSON."""
    from google.protobuf import json_format

    described = {
        name: json_format.MessageToDict(
            definitions[name], preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        for name in sorted(definitions)
    }  # fmt: skip
    spec = {"name": found.name, "signature_name": "", "version": str(found.version)}
    signatures = {"signature_def": {"signature_def": described}}
    return json.dumps({"model_spec": spec, "metadata": signatures}, indent=1)


def _plain(name: str, value: np.ndarray) -> Any:
    """An array as nested lists of what JSON has."""
    if value.dtype.kind in "OS":
        told: Callable[[Any], Any] = _coded if name.endswith("_bytes") else _text
    elif value.dtype.name in ("float16", "float32", "bfloat16"):
        told = _decimal
    elif value.dtype.kind in "biuf":
        return value.tolist()
    else:
        raise RequestError(400, f'output "{name}" is {value.dtype.name}, which JSON has not.')
    plain = np.empty(value.size, object)
    plain[:] = [told(item) for item in value.ravel()]
    return plain.reshape(value.shape).tolist()


def _decimal(item: Any) -> float:
    """The shortest number that is this one in its precision: 0.2, not 0.20000000298023224."""
    return float(str(item))


def _text(item: bytes) -> str:
    return item.decode("utf-8", "replace")


def _coded(item: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(item).decode()}


def _json(value: Any) -> bytes:
    """With NaN and Infinity, as TensorFlow Serving writes them."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")
