"""Turns a whole Keras model into blocks: makes it, checks it, matches its inputs to the data's."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from models import ModelError, graph


def made(build: Any, num_outputs: int, takes_number: bool) -> keras.Model:
    """Calls a function that builds a model, or copies a model with fresh weights.

    Raises:
        ModelError: what it returns is no Keras model.
    """
    if isinstance(build, keras.Model):
        return keras.models.clone_model(build)
    found = build(num_outputs) if takes_number else build()
    if not isinstance(found, keras.Model):
        raise ModelError(
            f"{getattr(build, '__qualname__', build)} returns {type(found).__name__}, but "
            "KerasModel needs a function that returns a keras.Model: return "
            "keras.Model(inputs, outputs) or keras.Sequential([...])."
        )
    return found


def blocks_of(model: keras.Model) -> list[keras.Layer]:
    """Returns the blocks of a functional or sequential model.

    Raises:
        ModelError: it is another kind of model, or lacks an Input that its masks need.
    """
    if isinstance(model, keras.Sequential) and not model.built:
        return _unbuilt(model)
    if not graph.is_functional(model):
        raise ModelError(
            f"{model.name} is a {type(model).__name__} whose call is Python code, which cannot be "
            "cut into stages: make it functional, keras.Model(inputs, outputs), or list its layers "
            "in the `blocks` of a model of your own (docs/models.md)."
        )
    functional = graph.unwrapped(model)
    return graph.segments(functional, Entry(functional), Leave(functional))


def _unbuilt(model: keras.Sequential) -> list[keras.Layer]:
    """Returns the layers of a sequential model without an Input, which are blocks as they are."""
    makes_masks = (keras.layers.Masking, keras.layers.Embedding)
    for layer in model.layers:
        if isinstance(layer, makes_masks) and getattr(layer, "mask_zero", True):
            raise ModelError(
                f"{layer.name} makes masks, which reach the layers after it only if the model's "
                "graph is known: begin the keras.Sequential with keras.Input(shape)."
            )
    return list(model.layers)


class Entry:
    """Makes a model's input tensors, in Keras' order, of the data's inputs.

    Inputs of the data that are a dictionary are matched by the names of the model's inputs, others
    by their order.
    """

    def __init__(self, model: keras.Model) -> None:
        self.name, self.specs = model.name, list(model.inputs)
        self.names = [tensor.name for tensor in self.specs]
        if isinstance(model.input, dict):
            keys = {id(tensor): key for key, tensor in model.input.items()}
            self.names = [keys[id(tensor)] for tensor in self.specs]

    def __call__(self, x: Any) -> list[tf.Tensor]:
        """Returns the tensors, in the types that the model wants.

        Raises:
            ModelError: an input is missing, or has another shape.
        """
        if isinstance(x, dict):
            missing = [name for name in self.names if name not in x]
            if missing:
                raise ModelError(
                    f"the model {self.name} has an input {missing[0]!r}, but the data's inputs are "
                    f"{', '.join(map(repr, x))}: give the keras.Input one of these names."
                )
            flat = [x[name] for name in self.names]
        else:
            flat = tf.nest.flatten(x)
        if len(flat) != len(self.specs):
            raise ModelError(
                f"the model {self.name} has {len(self.specs)} inputs ({', '.join(self.names)}), "
                f"but the data give {len(flat)}: make the model of as many keras.Input."
            )
        return [self._fit(*each) for each in zip(flat, self.specs, self.names, strict=True)]

    def _fit(self, x: tf.Tensor, spec: Any, name: str) -> tf.Tensor:
        """Casts an input, and adds or drops a last dimension of 1, as Keras does."""
        given = x.shape
        if x.shape.rank == len(spec.shape) + 1 and x.shape[-1] == 1:
            x = tf.squeeze(x, -1)
        elif x.shape.rank == len(spec.shape) - 1 and spec.shape[-1] == 1:
            x = tf.expand_dims(x, -1)
        if not x.shape.is_compatible_with(spec.shape):
            raise ModelError(
                f"the input {name!r} of the model {self.name} has shape {list(spec.shape)}, but "
                f"the data give {given.as_list()}: change the keras.Input, or the data's size."
            )
        return x if x.dtype == spec.dtype else tf.cast(x, spec.dtype)


class Leave:
    """Makes a model's outputs of its output tensors: one, or a structure of several."""

    def __init__(self, model: keras.Model) -> None:
        self.structure = keras.tree.map_structure(lambda tensor: tensor.name, model.output)

    def __call__(self, tensors: list[tf.Tensor]) -> Any:
        """Returns a tensor, or a tuple or dictionary of them; lists become tuples."""
        if len(tensors) == 1 and not isinstance(self.structure, dict):
            return tensors[0]
        packed = keras.tree.pack_sequence_as(self.structure, tensors)
        return keras.tree.lists_to_tuples(packed)
