"""Converts a trained model for LiteRT (TensorFlow Lite), and runs the result."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf

from app.inference.saved_model import Model
from app.reporting import chatter
from input.batches import DataSet

FILE = "model.tflite"


def save(model: Model, data: DataSet, folder: Path, is_int8: bool) -> None:
    """Writes a model from inputs [1, ...] to outputs [1, K], and the names of the classes.

    Decoding and tokenisation are left to the caller, as LiteRT has no operators for them. With
    `is_int8` weights are int8, and so are activations where an operator can (dynamic range).
    """
    (given,) = tf.nest.flatten(data.input_spec)
    spec = tf.TensorSpec([1, *given.shape[1:]], given.dtype, "inputs")
    function = tf.function(
        lambda x: model.outputs(tf.nest.pack_sequence_as(data.input_spec, [x])),
        input_signature=[spec],
    ).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT] if is_int8 else []
    with chatter.capture_native_stderr():
        content = converter.convert()
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(content)
    (folder / "classes.txt").write_text("\n".join(data.classes) + "\n", encoding="utf-8")


def outputs(folder: Path, inputs: Iterable[np.ndarray]) -> np.ndarray:
    """Runs a model that `save` wrote on inputs one by one; returns the outputs, float32 [N, K]."""
    with warnings.catch_warnings(), chatter.capture_native_stderr():
        warnings.simplefilter("ignore")  # of its move to another package in a later TensorFlow
        model = tf.lite.Interpreter(model_content=(folder / FILE).read_bytes())
        model.allocate_tensors()
        (given,), (returned,) = model.get_input_details(), model.get_output_details()
        found = []
        for x in inputs:
            if tuple(model.get_input_details()[0]["shape"]) != (1, *x.shape):
                model.resize_tensor_input(given["index"], (1, *x.shape))
                model.allocate_tensors()
            model.set_tensor(given["index"], x[np.newaxis])
            model.invoke()
            found.append(np.array(model.get_tensor(returned["index"])))
    return np.concatenate(found)
