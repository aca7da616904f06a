"""What the clients of a model send, and how it becomes inputs.

kind     fields
image    image_bytes, string [b]: JPEG or PNG files
text     text, string [b]: UTF-8
(none)   tensors as the data's `input_spec` has them: by the names of a dictionary, else `inputs`
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from app.errors import UsageError
from app.objectives import Objective
from input.batches import DataSet
from input.raw import FIELDS, Limits

BATCH = 32  # examples
Fields = Mapping[str, Any]  # tensors or arrays of a batch by name, each [b, ...]


@dataclass(frozen=True)
class Client:
    """What clients send.

    Attributes:
        fields: of a batch, by name.
        to_inputs: maps them to inputs as in evaluation; part of exported graphs.
    """

    fields: Mapping[str, tf.TensorSpec]
    to_inputs: Callable[[Fields], Any]


def of(data: DataSet, limits: Limits) -> Client:
    """Returns what clients send of these data; examples larger than the limits are refused."""
    if not data.kind:
        return Client(named(data.input_spec), lambda sent: _packed(data.input_spec, sent))
    name = FIELDS[data.kind]
    spec = tf.TensorSpec([None], tf.string)
    return Client({name: spec}, lambda sent: data.preprocess(sent[name], limits))


def batches(data: DataSet) -> Iterator[tuple[dict[str, np.ndarray | list[bytes]], Any]]:
    """Yields the evaluation split in batches: what clients would send of it, and its targets."""
    starts = range(0, data.num_evaluation, BATCH)
    every = data.evaluation(BATCH, range(data.num_evaluation))
    for start, (inputs, targets, _) in zip(starts, every, strict=True):
        ids = range(start, min(start + BATCH, data.num_evaluation))

        def whole(x: tf.Tensor, count: int = len(ids)) -> np.ndarray:
            array: np.ndarray = x.numpy()[:count]  # the last batch is filled up
            return array

        targets = tf.nest.map_structure(whole, targets)
        if data.kind:
            yield {FIELDS[data.kind]: list(data.held_out.fetch(ids)[0])}, targets
        else:
            yield {name: whole(x) for name, x in named(inputs).items()}, targets


def named(nest: Any) -> dict[str, Any]:
    """Returns the tensors of a nest by their names: those of a dictionary, else `inputs`."""
    if isinstance(nest, Mapping) and all(not tf.nest.is_nested(x) for x in nest.values()):
        return {str(name): nest[name] for name in sorted(nest)}
    flat = tf.nest.flatten(nest)
    return {"inputs": flat[0]} if len(flat) == 1 else {f"inputs_{i}": x for i, x in enumerate(flat)}


def require(data: DataSet, objective: Objective) -> None:
    """Checks that the data name the classes that an answer would name.

    Raises:
        UsageError: they do not, or are of a kind that is not known.
    """
    names = len(data.classes)
    if data.kind not in ("", *FIELDS) or (objective.names_classes and names != data.num_classes):
        raise UsageError(
            f"{type(data).__name__} must describe the examples that a client sends: give it "
            f"`kind` ({', '.join(FIELDS)}, or none for tensors), for a kind `preprocess`, and the "
            f"names of its {data.num_classes} `classes`, not {names} (input/batches.py)."
        )


def _packed(spec: Any, sent: Fields) -> Any:
    return tf.nest.pack_sequence_as(spec, [sent[name] for name in named(spec)])
