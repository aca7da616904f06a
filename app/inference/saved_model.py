"""Writes a trained model as a SavedModel that needs neither this project nor Horovod.

What clients have goes in (image files, texts), names of classes come out: decoding, resizing and
tokenisation are operators of the graph. A model of texts needs those of TensorFlow Text, which the
serving image has. Weights are stored as a variant says:

    float32    as they are
    bfloat16   in half the size, and the model computes in bfloat16
    float16    in half the size
    int8       in a quarter: in [-127, 127], with a float32 scale for each column (the last axis)

Only kernels and tables are stored small: vectors, such as biases and normalisation, stay float32.
"""

import dataclasses
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from app.config import Experiment
from app.inference import clients
from app.objectives import Classification
from app.training.building import build
from input import paths
from input.batches import DataSet
from input.raw import Limits
from models import blocks, shards

FORMAT = 1  # of scaleproof.json

Answer = Callable[..., dict[str, tf.Tensor]]


class Variant(NamedTuple):
    """A way to store weights: their type, and the precision in which the model computes."""

    stored: str
    precision: Literal["float32", "bfloat16", "float16"]


VARIANTS = {
    "float32": Variant("float32", "float32"),
    "bfloat16": Variant("bfloat16", "bfloat16"),
    "float16": Variant("float16", "float32"),
    "int8": Variant("int8", "float32"),
}


class Model(tf.Module):
    """The blocks of a model, which read their weights from this module.

    Args:
        experiment: holds the configuration of the model and of its data.
        data: opened.
        weights: by name.
        variant: how weights are stored, and in which precision the model computes.
    """

    def __init__(
        self, experiment: Experiment, data: DataSet, weights: Mapping[str, np.ndarray],
        variant: Variant,
    ) -> None:  # fmt: skip
        super().__init__()
        computed = dataclasses.replace(experiment, precision=variant.precision)
        built = build(computed, data.input_spec, experiment.objective.num_outputs(data)).blocks
        self._blocks = lambda: built  # in a list they would be saved, with weights of their own
        self._weights = {name: _stored(value, variant) for name, value in weights.items()}
        self._classes = tf.constant(list(data.classes), tf.string)
        self.objective = experiment.objective
        # One graph that all signatures call.
        self.compiled = tf.function(self.outputs, input_signature=[data.input_spec])

    def outputs(self, inputs: Any) -> Any:
        """Returns the model's outputs for a batch of inputs, float32 [b, ...]."""
        layers = self._blocks()
        variables = [v for block in layers for v in block.weights]
        # In the type of computation, however they are stored.
        values = {name: weight.read_value() for name, weight in self._weights.items()}
        mapping = [(v, values[shards.whole_name(v)]) for v in variables]
        with keras.StatelessScope(state_mapping=mapping):
            y = blocks.forward(layers, inputs, False, tf.zeros([2], tf.int32))
        return tf.nest.map_structure(lambda one: tf.cast(one, tf.float32), y)

    def answers(self, inputs: Any) -> dict[str, tf.Tensor]:
        """Returns what the objective answers for a batch of inputs, by name, each [b, ...]."""
        return self.objective.answers(self.compiled(inputs), self._classes)


def signatures(model: Model, data: DataSet, limits: Limits) -> dict[str, Any]:
    """Returns the signatures of a SavedModel, by name.

    serving_default  a batch of what clients have: `image_bytes` or `text`, string [b], or tensors
    single           one of it, without [b]
    outputs          `outputs` of the model, and the objective's `scores`

    Of images and texts, in classification:

    logits           `logits` and `probabilities` [b, K], in the order of the classes
    classify         serialised tf.Examples, string [b], for TensorFlow Serving's :classify
    arrays           decoded images, uint8 [b, H, W, 3]
    """
    client = clients.of(data, limits)

    def answers(**sent: tf.Tensor) -> dict[str, tf.Tensor]:
        return model.answers(client.to_inputs(sent))

    def single(**sent: tf.Tensor) -> dict[str, tf.Tensor]:
        found = answers(**{name: x[tf.newaxis] for name, x in sent.items()})
        return {name: y[0] for name, y in found.items()}

    def outputs(**sent: tf.Tensor) -> dict[str, tf.Tensor]:
        y = model.compiled(client.to_inputs(sent))
        scores = model.objective.scores(y)
        return {**_numbered("outputs", y), **_numbered("scores", scores)}

    def signature(function: Answer, fields: Mapping[str, tf.TensorSpec], first: int = 0) -> Any:
        specs = {n: tf.TensorSpec(s.shape[first:], s.dtype, n) for n, s in fields.items()}
        return tf.function(function).get_concrete_function(**specs)

    found = {
        "serving_default": signature(answers, client.fields),
        "single": signature(single, client.fields, first=1),
        "outputs": signature(outputs, client.fields),
    }
    if not data.kind or not isinstance(model.objective, Classification):
        return found
    (field,) = client.fields

    def logits(**sent: tf.Tensor) -> dict[str, tf.Tensor]:
        y = model.compiled(client.to_inputs(sent))
        return {"logits": y, "probabilities": tf.nn.softmax(y)}

    def classify(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(inputs, {field: tf.io.FixedLenFeature([], tf.string)})
        found = answers(**parsed)
        return {n: found[n] for n in ("classes", "scores")}

    found["logits"] = signature(logits, client.fields)
    found["classify"] = signature(classify, {"inputs": tf.TensorSpec([None], tf.string)})
    preprocess_arrays = getattr(data, "preprocess_arrays", None)
    if preprocess_arrays:
        images = {"images": tf.TensorSpec([None, None, None, 3], tf.uint8)}
        found["arrays"] = signature(lambda images: model.answers(preprocess_arrays(images)), images)
    return found


def _numbered(name: str, nest: Any) -> dict[str, tf.Tensor]:
    """Returns the tensors of a nest: `name` if there is one, else `name_00`, `name_01` ..."""
    flat = tf.nest.flatten(nest)
    return {name: flat[0]} if len(flat) == 1 else {f"{name}_{i:02}": y for i, y in enumerate(flat)}


def save(
    model: Model, data: DataSet, limits: Limits, folder: Path, about: Mapping[str, Any]
) -> None:
    """Writes a SavedModel, with `about` as assets.extra/scaleproof.json for servers."""
    folder.mkdir()
    found = signatures(model, data, limits)
    with paths.plain(folder) as name:
        tf.saved_model.save(model, name, found)
        if "classify" in found:
            updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(name)
            updater.replace_method_name("classify", "tensorflow/serving/classify")
            updater.save()
    (folder / "assets.extra").mkdir()
    text = json.dumps({"format": FORMAT, **about}, indent=1) + "\n"
    (folder / "assets.extra" / "scaleproof.json").write_text(text)


class Widened(tf.Module):
    """A weight that is stored small, and converted to float32 once, when the model is loaded.

    Converted in every call, MiniLM's table of words would take longer than a short sentence does.
    """

    def __init__(self, value: np.ndarray, dtype: tf.DType) -> None:
        super().__init__()
        scale = np.float32(1)
        if dtype == tf.int8:
            scale = np.maximum(np.abs(value).max(tuple(range(value.ndim - 1))) / 127, 1e-30)
            value = np.round(value / scale)
        self.scale = tf.Variable(np.float32(scale), trainable=False)
        self.small = tf.Variable(tf.cast(value, dtype), trainable=False)
        self.wide = Wide(self.small, self.scale)

    def read_value(self) -> tf.Tensor:
        """Returns its value, float32."""
        value = tf.raw_ops.ReadVariableOp(resource=self.wide.resource_handle, dtype=tf.float32)
        return tf.ensure_shape(value, self.small.shape)


class Wide(tf.saved_model.experimental.TrackableResource):
    """A float32 tensor that is not in the SavedModel, and is computed when that is loaded."""

    def __init__(self, small: tf.Variable, scale: tf.Variable) -> None:
        super().__init__()
        self._small, self._scale = small, scale
        self._name = f"wide_{uuid.uuid4().hex}"  # a process may load several models
        # The first read makes the handle, which must not happen inside a function.
        with tf.init_scope():
            assert self.resource_handle is not None
            self._initialize()

    def _create_resource(self) -> Any:
        return tf.raw_ops.VarHandleOp(
            dtype=tf.float32, shape=self._small.shape, shared_name=self._name
        )

    def _initialize(self) -> None:
        value = tf.cast(self._small.read_value(), tf.float32) * self._scale.read_value()
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=value)


def _stored(value: np.ndarray, variant: Variant) -> tf.Variable | Widened:
    if variant.stored == "float32" or value.ndim < 2:
        return tf.Variable(value, trainable=False)
    return Widened(value, tf.as_dtype(variant.stored))
