"""The weights of an exported model: how they are stored, and what is computed with them.

    float32    as they are
    bfloat16   half the size, and computed in bfloat16
    float16    half the size
    int8       a quarter: in [-127, 127], and a float32 scale a column (the last axis)

Kernels and tables alone are stored small: vectors, as biases and what normalises, are float32.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf


class Variant(NamedTuple):
    """One way: the type that is stored, and the precision of the model."""

    stored: str
    precision: Literal["float32", "bfloat16", "float16"]


VARIANTS = {
    "float32": Variant("float32", "float32"),
    "bfloat16": Variant("bfloat16", "bfloat16"),
    "float16": Variant("float16", "float32"),
    "int8": Variant("int8", "float32"),
}


class Weights(tf.Module):
    """Weights in a SavedModel, by name, stored small and read as they are computed with."""

    def __init__(self, values: Mapping[str, np.ndarray], variant: Variant) -> None:
        super().__init__()
        self.read = {name: _stored(value, variant) for name, value in values.items()}

    def __call__(self) -> dict[str, tf.Tensor]:
        """Their values, for the model to compute with."""
        return {name: weight() for name, weight in self.read.items()}


def _stored(value: np.ndarray, variant: Variant) -> tf.Module:
    if variant.stored == "float32" or value.ndim < 2:
        return Plain(value)
    return Widened(value, tf.as_dtype(variant.stored))


class Plain(tf.Module):
    """A weight that is computed with as it is stored."""

    def __init__(self, value: np.ndarray) -> None:
        super().__init__()
        self.variable = tf.Variable(value, trainable=False)

    def __call__(self) -> tf.Tensor:
        """Its value."""
        return self.variable.read_value()


class Widened(tf.Module):
    """A weight that is stored small, and made float32 once, when the model is loaded.

    Made so in every call, MiniLM's table of words alone would take longer than a short sentence.
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

    def __call__(self) -> tf.Tensor:
        """Its value, float32."""
        value = tf.raw_ops.ReadVariableOp(resource=self.wide.resource_handle, dtype=tf.float32)
        return tf.ensure_shape(value, self.small.shape)


class Wide(tf.saved_model.experimental.TrackableResource):
    """Memory that is not in the SavedModel, filled when it is loaded, after its variables."""

    def __init__(self, small: tf.Variable, scale: tf.Variable) -> None:
        super().__init__()
        self._small, self._scale = small, scale
        self._name = f"wide_{uuid.uuid4().hex}"  # a process may have loaded others
        with tf.init_scope():  # made when it is first asked for, and that must not be in a function
            assert self.resource_handle is not None
            self._initialize()

    def _create_resource(self) -> Any:
        return tf.raw_ops.VarHandleOp(
            dtype=tf.float32, shape=self._small.shape, shared_name=self._name
        )

    def _initialize(self) -> None:
        value = tf.cast(self._small.read_value(), tf.float32) * self._scale.read_value()
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=value)
