"""Converts a trained model for LiteRT (TensorFlow Lite), and runs the result."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import tensorflow as tf

from app.inference.saved_model import Model
from app.reporting import chatter
from input.batches import DataSet

FILE = "model.tflite"


def save(model: Model, data: DataSet, folder: Path, is_int8: bool) -> None:
    """Writes a model from inputs [1, ...] to logits [1, K], and the names of the classes.

    Decoding and tokenisation are left to the caller, as LiteRT has no operators for them. With
    `is_int8` weights are int8, and so are activations where an operator can (dynamic range).
    """
    spec = tf.TensorSpec([1, *data.input_spec.shape[1:]], data.input_spec.dtype, "inputs")
    function = tf.function(model.outputs, input_signature=[spec]).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT] if is_int8 else []
    with chatter.capture_native_stderr():
        content = converter.convert()
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(content)
    (folder / "classes.txt").write_text("\n".join(data.classes) + "\n", encoding="utf-8")


class Interpreter:
    """Runs a model that `save` wrote."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings(), chatter.capture_native_stderr():
            warnings.simplefilter("ignore")  # of its move to another package in a later TensorFlow
            self._lite = tf.lite.Interpreter(model_content=(folder / FILE).read_bytes())
            self._lite.allocate_tensors()
        (self._input,), (self._output,) = (
            self._lite.get_input_details(), self._lite.get_output_details()
        )  # fmt: skip

    def logits(self, inputs: tf.Tensor) -> np.ndarray:
        """Returns the logits of a batch of inputs, computed one by one, float32 [b, K]."""
        return np.concatenate([self._one(x) for x in inputs.numpy()])

    def _one(self, x: np.ndarray) -> np.ndarray:
        index = self._input["index"]
        if tuple(self._lite.get_input_details()[0]["shape"]) != (1, *x.shape):
            self._lite.resize_tensor_input(index, (1, *x.shape))
            self._lite.allocate_tensors()
        self._lite.set_tensor(index, x[np.newaxis])
        self._lite.invoke()
        return np.array(self._lite.get_tensor(self._output["index"]))
