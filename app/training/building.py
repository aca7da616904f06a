"""Builds a model's blocks on their devices, and fills their weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from app.config import Experiment
from app.parallel.placement import Placement, host_device
from app.parallel.sharded import Sharded
from models import ModelError, blocks, shards

POLICIES = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}


class BuiltModel(NamedTuple):
    """A model on its devices.

    Attributes:
        blocks: Keras layers, first to last.
        statistics: in the order in which the blocks record them.
        axes: along which each split weight is cut, by the weight's name.
        outputs: specs of the model's outputs for a batch of two.
    """

    blocks: list[keras.Layer]
    statistics: list[blocks.Statistic]
    axes: dict[str, int]
    outputs: Any


def build(
    experiment: Experiment,
    input_spec: Any,
    num_outputs: int,
    placement: Placement | None = None,
    pretrained: Path | None = None,
) -> BuiltModel:
    """Builds each block on its devices; a split model is filled from a whole one.

    Raises:
        ModelError: the model breaks the protocol of blocks, or cannot be split.
    """
    if placement is None or placement.num_shards == 1:
        return _build_whole(experiment, input_spec, num_outputs, placement, pretrained)
    with tf.device(host_device()):  # no device need hold all of it
        source = _build_whole(experiment, input_spec, num_outputs, None, pretrained)
    with keras_defaults(experiment):
        split = list(experiment.model.blocks(num_outputs, shards=placement.num_shards))  # type: ignore[call-arg]
        places = placement.each_block()
        built = blocks.build(split, zeros(input_spec), experiment.seed, places, experiment.frozen)
    for block in split:
        shards.refuse_losses(block)
    return BuiltModel(split, built.statistics, _fill(split, source.blocks), built.outputs)


@contextlib.contextmanager
def keras_defaults(experiment: Experiment) -> Iterator[None]:
    """Sets Keras' global state as layers are to be created and built: names, precision, seed.

    The precision is a global of Keras (its dtype policy), as blocks are made without being given
    one. A layer keeps the one it is created with, so the global is restored afterwards.
    """
    before, is_filtering = (
        keras.config.dtype_policy(),
        keras.config.is_traceback_filtering_enabled(),
    )
    keras.config.disable_traceback_filtering()  # which wraps a message in what Keras was doing
    keras.utils.clear_session()  # names that Keras makes up start from 1 again
    keras.config.set_dtype_policy(POLICIES[experiment.precision])
    keras.utils.set_random_seed(experiment.seed)  # an initializer may draw its own seed from it
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
        if is_filtering:
            keras.config.enable_traceback_filtering()


def zeros(spec: Any, batch: int = 2, length: int = 1) -> Any:
    """Returns a batch of zeros, or of empty strings, as a nest of specs says.

    The first dimension is `batch`, others that are unknown are `length`.
    """

    def fill(one: tf.TensorSpec) -> tf.Tensor:
        shape = [batch if i == 0 else d or length for i, d in enumerate(one.shape)]
        return tf.fill(shape, "") if one.dtype == tf.string else tf.zeros(shape, one.dtype)

    return tf.nest.map_structure(fill, spec)


def _build_whole(
    experiment: Experiment,
    input_spec: Any,
    num_outputs: int,
    placement: Placement | None,
    pretrained: Path | None,
) -> BuiltModel:
    model = experiment.model
    with keras_defaults(experiment):
        whole = list(model.blocks(num_outputs))
        places = placement.each_block() if placement else None
        built = blocks.build(whole, zeros(input_spec), experiment.seed, places, experiment.frozen)
        if pretrained:
            model.load(whole, pretrained)  # type: ignore[attr-defined]
    return BuiltModel(whole, built.statistics, {}, built.outputs)


def _fill(split: list[keras.Layer], whole: list[keras.Layer]) -> dict[str, int]:
    """Gives split blocks the weights of whole ones; returns the axes of those that are split.

    Raises:
        ModelError: a shard has a weight that is not a slice of the whole.
    """
    axes: dict[str, int] = {}
    pieces: dict[str, list[tf.Variable]] = {}
    for variable in (v for block in split for v in block.weights):
        pieces.setdefault(shards.whole_name(variable), []).append(variable.value)
    for variable in (v for block in whole for v in block.weights):
        name = shards.whole_name(variable)
        first, *others = pieces[name]
        if not others:
            first.assign(variable.value)
            continue
        differs = [a != b for a, b in zip(variable.shape, first.shape, strict=True)]
        if sum(differs) != 1:
            raise ModelError(
                f"each shard of {name} has shape {list(first.shape)}, the whole "
                f"{list(variable.shape)}: a shard holds a slice along one axis of every weight it "
                "has; what is not sliced, as a bias of the sum, belongs to the Sharded layer."
            )
        axes[name] = differs.index(True)
        Sharded((first, *others), axes[name]).assign(variable.value)
    return axes
