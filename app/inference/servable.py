"""A trained model as a SavedModel that needs neither this project nor Horovod.

What clients have goes in (image files, texts), names of classes come out: decoding, resizing and
tokenisation are operators of the graph. A model of texts needs TensorFlow Text's, which the serving
image has.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from app.config import Experiment
from app.inference.variants import Variant, Weights
from app.training.building import build
from input import paths
from input.batches import DataSet
from input.raw import FIELDS, Limits
from models import blocks, shards

FORMAT = 1  # of scaleproof.json
TOP = 5  # classes told of an example, at most

Answer = Callable[..., dict[str, tf.Tensor]]


class Model(tf.Module):
    """Blocks that read weights stored in this module, and nothing else of the project's.

    Args:
        experiment: holds the model and its data's configuration.
        data: opened.
        weights: by name.
        variant: how they are stored, and computed with.
    """

    def __init__(
        self, experiment: Experiment, data: DataSet, weights: Mapping[str, np.ndarray],
        variant: Variant,
    ) -> None:  # fmt: skip
        super().__init__()
        computed = dataclasses.replace(experiment, precision=variant.precision)
        built = build(computed, data.input_spec, data.num_classes).blocks
        self._blocks = lambda: built  # a list would be saved, with weights of its own
        self._weights = Weights(weights, variant)
        self._classes = tf.constant(data.classes)
        # One graph, which all signatures call.
        self.shared = tf.function(self.logits, input_signature=[data.input_spec])

    def logits(self, inputs: tf.Tensor) -> tf.Tensor:
        """Of a batch of inputs, float32 [b, K]."""
        layers, values = self._blocks(), self._weights()
        variables = [v for block in layers for v in block.variables]
        mapping = [(v, values[shards.whole_name(v)]) for v in variables]
        with keras.StatelessScope(state_mapping=mapping):
            y = blocks.forward(layers, inputs, False, tf.zeros([2], tf.int32))
        return tf.cast(y, tf.float32)

    def answers(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """The likeliest classes: `class` and `probability` [b], `classes` and `scores` [b, k]."""
        count = min(TOP, self._classes.shape[0])
        scores, places = tf.math.top_k(tf.nn.softmax(self.shared(inputs)), count)
        names = tf.gather(self._classes, places)
        return {
            "class": names[:, 0], "probability": scores[:, 0], "classes": names, "scores": scores
        }  # fmt: skip


def signatures(model: Model, data: DataSet, limits: Limits) -> dict[str, Any]:
    """By name.

    serving_default  a batch of what clients have: `image_bytes` or `text`, string [b]
    single           one of them, a scalar
    logits           `logits` and `probabilities` [b, K], in the order of the classes
    classify         serialised tf.Examples, string [b], for TensorFlow Serving's :classify
    arrays           images that are decoded, uint8 [b, H, W, 3]
    """
    field = FIELDS[data.kind]

    def prepared(raw: tf.Tensor) -> tf.Tensor:
        return data.preprocess(raw, limits)

    def logits(raw: tf.Tensor) -> dict[str, tf.Tensor]:
        y = model.shared(prepared(raw))
        return {"logits": y, "probabilities": tf.nn.softmax(y)}

    def single(raw: tf.Tensor) -> dict[str, tf.Tensor]:
        return {n: y[0] for n, y in model.answers(prepared(raw[tf.newaxis])).items()}

    def classify(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(examples, {field: tf.io.FixedLenFeature([], tf.string)})
        found = model.answers(prepared(parsed[field]))
        return {n: found[n] for n in ("classes", "scores")}

    def of(function: Answer, name: str, shape: list[int | None], dtype: tf.DType) -> Any:
        return tf.function(function, input_signature=[tf.TensorSpec(shape, dtype, name)])

    found = {
        "serving_default": of(lambda raw: model.answers(prepared(raw)), field, [None], tf.string),
        "single": of(single, field, [], tf.string),
        "logits": of(logits, field, [None], tf.string),
        "classify": of(classify, "inputs", [None], tf.string),
    }
    of_arrays = getattr(data, "preprocess_arrays", None)
    if of_arrays:
        found["arrays"] = of(
            lambda images: model.answers(of_arrays(images)), "images", [None, None, None, 3],
            tf.uint8,
        )  # fmt: skip
    return found


def save(
    model: Model, data: DataSet, limits: Limits, folder: Path, about: Mapping[str, Any]
) -> None:
    """Writes a SavedModel, and what a server may want to know of it."""
    folder.mkdir()
    with paths.plain(folder) as place:
        tf.saved_model.save(model, place, signatures(model, data, limits))
        updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(place)
        updater.replace_method_name("classify", "tensorflow/serving/classify")
        updater.save()
    (folder / "assets.extra").mkdir()
    text = json.dumps({"format": FORMAT, **about}, indent=1) + "\n"
    (folder / "assets.extra" / "scaleproof.json").write_text(text)
