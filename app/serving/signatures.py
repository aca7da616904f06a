"""The functions of a model: what they take and give, and which one a request means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.serving.errors import RequestError, cut

DEFAULT = "serving_default"
METHODS = "tensorflow/serving/"  # predict, classify, regress
Tensors = Mapping[str, np.ndarray]  # what a function takes, or gives


@dataclass(frozen=True)
class Spec:
    """A tensor of a signature.

    Attributes:
        dtype: TensorFlow's name of it.
        shape: None where a dimension is free; None itself if the rank is.
    """

    dtype: str
    shape: tuple[int | None, ...] | None

    @property
    def is_batch(self) -> bool:
        """Whether its first dimension may be any number of instances."""
        return bool(self.shape) and self.shape is not None and self.shape[0] is None


@dataclass(frozen=True)
class Signature:
    """A function of the model: the names and kinds of what it takes and gives."""

    name: str
    method: str
    inputs: Mapping[str, Spec]
    outputs: Mapping[str, Spec]

    @property
    def is_batched(self) -> bool:
        """Whether instances of several requests may be computed together."""
        return all(spec.is_batch for spec in (*self.inputs.values(), *self.outputs.values()))


def choose(known: Mapping[str, Signature], verb: str, name: str | None) -> Signature:
    """The signature of a request: as named, or the one that is meant.

    Raises:
        RequestError: there is none.
    """
    if name is not None and name not in known:
        raise RequestError(400, f"there is no signature {cut(name)!r}, but {', '.join(known)}.")
    if verb == "predict":
        if name is None and DEFAULT not in known:
            raise RequestError(400, f"signature_name must be one of {', '.join(known)}.")
        return known[name or DEFAULT]
    able = [key for key, signature in known.items() if signature.method == verb]
    if name in able or (name is None and DEFAULT in able):
        return known[name or DEFAULT]
    if name is not None or len(able) != 1:
        told = f"those of :{verb} are {', '.join(able)}" if able else f"none is for :{verb}"
        raise RequestError(400, f"signature {name or DEFAULT!r} is not for :{verb}; {told}.")
    return known[able[0]]


def describe(name: str, definition: Any) -> Signature:
    """A SignatureDef as plain data."""
    import tensorflow as tf

    def specs(infos: Mapping[str, Any]) -> dict[str, Spec]:
        return {key: Spec(tf.as_dtype(info.dtype).name, shape(info.tensor_shape))
                for key, info in sorted(infos.items())}  # fmt: skip

    def shape(proto: Any) -> tuple[int | None, ...] | None:
        sizes = tuple(d.size if d.size >= 0 else None for d in proto.dim)
        return None if proto.unknown_rank else sizes

    method = definition.method_name.removeprefix(METHODS)
    return Signature(name, method, specs(definition.inputs), specs(definition.outputs))
