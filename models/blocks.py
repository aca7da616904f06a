"""Defines the protocol of a model: an ordered list of blocks, each a Keras layer.

A block is called as `block(x, training=..., seed=...)` and returns the next block's x:

    x         activations: a tensor [B, ...] or a tuple of such; the data set's inputs for the
              first block
    training  Python bool
    seed      int32 [2], keyed by (experiment seed, micro-batch, block): draw from it with
              `tf.random.stateless_*`, and no process, stage or order shows in the result

`seed` is passed only if the block's `call` names it; `training` reaches every layer inside a block,
as Keras passes it on. So any Keras layer is a block as it is.

Moving statistics are not changed in `call`, which runs once a micro-batch: a block *records* the
micro-batch's value, and the training step takes the mean over all of them. What a stock Keras layer
assigns is recorded for it, and its random numbers are keyed as `seed` is (`stateful.py`).

Losses that Keras layers add (`add_loss`, regularizers) are part of the objective
(`losses.py`); constraints of weights are applied after each update, as Keras does.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from models import ModelError, freezing, losses, shards, stateful
from models.graph import Segment
from models.shards import Place

Activations = Any  # a tensor or a tuple of tensors

_recording = threading.local()  # pipeline stages are traced by threads of their own


@dataclass(frozen=True)
class Statistic:
    """One micro-batch's value of a variable that follows the mean over all micro-batches."""

    variable: keras.Variable
    value: tf.Tensor
    momentum: float  # variable = momentum * variable + (1 - momentum) * mean


@dataclass(frozen=True)
class Recorded:
    """Collects what the blocks of a training step return beside their activations.

    Attributes:
        loss_weight: weight of the blocks' losses in what is differentiated, float32 [].
        statistics: in the order of the blocks.
        losses: float32 [] of each block that has any, in the order of the blocks.
    """

    loss_weight: tf.Tensor
    statistics: list[Statistic] = field(default_factory=list)
    losses: list[tf.Tensor] = field(default_factory=list)


@contextlib.contextmanager
def recording(loss_weight: tf.Tensor | float = 1.0) -> Iterator[Recorded]:
    """Collects what blocks record inside the context, and adds their losses to the objective."""
    outer = getattr(_recording, "recorded", None)
    _recording.recorded = Recorded(tf.convert_to_tensor(loss_weight))
    try:
        yield _recording.recorded
    finally:
        _recording.recorded = outer


def record(variable: keras.Variable, value: tf.Tensor, momentum: float) -> None:
    """Records a micro-batch's value of a statistic, inside `recording`."""
    recorded = getattr(_recording, "recorded", None)
    if recorded is not None:
        recorded.statistics.append(Statistic(variable, value, momentum))


def call(
    block: keras.Layer, x: Activations, training: bool, seed: tf.Tensor, place: int
) -> Activations:
    """Calls one block; `place` is its index in the model.

    Keras hands `training` on to the layers inside, also where the block's own `call` lacks it.
    """
    names = inspect.signature(block.call).parameters
    arguments: dict[str, Any] = {"training": training}
    if "seed" in names:
        arguments["seed"] = tf.random.experimental.stateless_fold_in(seed, place)
    return block(x, **arguments)


def forward(
    blocks: Sequence[keras.Layer], x: Activations, training: bool, seed: tf.Tensor, first: int = 0
) -> Activations:
    """Runs built blocks in order; `first` is the index of the first of them in the model."""
    recorded: Recorded | None = getattr(_recording, "recorded", None)
    for place, block in enumerate(blocks, first):
        with stateful.scope(block, seed, place) as scope:
            x = call(block, x, training, seed, place)
            loss = losses.of(block) if recorded else None
        if recorded and scope:
            for variable, value in stateful.moved(block, scope):
                record(variable, value, momentum=0.0)
        if recorded and loss is not None:
            recorded.losses.append(loss)
            x = losses.attach(x, loss, recorded.loss_weight, block.name)
    return x


@contextlib.contextmanager
def reading(blocks: Sequence[keras.Layer], values: Sequence[tf.Tensor]) -> Iterator[None]:
    """Gives the blocks' trainable variables these values, in order; none: leaves them."""
    if not values:
        yield
        return
    variables = [v for block in blocks for v in block.trainable_variables]
    mapping = list(zip(variables, values, strict=True))
    with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
        yield


class Built(NamedTuple):
    """What building finds out.

    Attributes:
        statistics: of the model, in the order in which its blocks record them.
        outputs: specs of what the last block returned, of the batch it was called with.
    """

    statistics: list[Statistic]
    outputs: Any


def build(
    blocks: Sequence[keras.Layer],
    inputs: tf.Tensor,
    seed: int,
    places: Sequence[Sequence[Place]] | None = None,
    frozen: Sequence[str] = (),
) -> Built:
    """Creates every weight, each a function of (seed, its block's and its layer's name) only.

    Args:
        blocks: the whole model's, not yet built.
        inputs: one batch of inputs of any size.
        seed: the experiment's.
        places: for each block, the device of each of its shards; the first is the block's.
        frozen: patterns of names of weights that are not trained (`freezing.py`).

    Raises:
        ModelError: two weights of one name, a state that cannot be averaged, losses that no
            gradient would reach, or a pattern that matches nothing.
    """
    for block in blocks:
        _seed_initializers(block, seed)
    key = tf.zeros([2], tf.int32)
    x = inputs
    places = places or [[contextlib.nullcontext]] * len(blocks)
    statistics: list[Statistic] = []
    for place, (block, devices) in enumerate(zip(blocks, places, strict=True)):
        # For initializers that are not attributes of their layers.
        keras.utils.set_random_seed(_digest(f"{seed}/{block.name}"))
        shards.assign_devices(block, devices)
        if type(block).build is keras.Layer.build:
            block.built = True  # by the call: Keras would call it on symbolic tensors first
        with devices[0]():
            for variable in block.weights:  # of a model that makes them when it is made
                stateful.move(variable)
            y, found = _first_call(block, x, key, place, frozen)
        statistics += found
        x = y
    _check_names(blocks)
    freezing.check(blocks, frozen)
    return Built(statistics, tf.nest.map_structure(tf.TensorSpec.from_tensor, x))


def _first_call(
    block: keras.Layer, x: Activations, key: tf.Tensor, place: int, frozen: Sequence[str]
) -> tuple[Activations, list[Statistic]]:
    """Creates a block's variables by calling it; returns its output, and what it records."""
    y, found = x, list[Statistic]()
    is_complete = isinstance(block, Segment)
    if not is_complete:
        with stateful.creating(block), recording() as recorded:
            y = call(block, x, True, key, place)
            loss = losses.of(block)
        if loss is not None:
            losses.attach(y, loss, recorded.loss_weight, block.name)  # or refuses: no gradient
        # Keras may have called layers inside the block on symbolic tensors first.
        found = [s for s in recorded.statistics if not tf.is_symbolic_tensor(s.value)]
    freezing.freeze(block, frozen)
    own = {id(s.variable) for s in found}
    is_known = all(id(v) in own for v in block.non_trainable_weights)
    if is_complete or frozen or not is_known or stateful.seed_states(block):
        with recording() as recorded:  # as in a step: what does a call assign?
            y = forward([block], x, True, key, place)
        found = recorded.statistics
    return y, found


def _seed_initializers(block: keras.Layer, seed: int) -> None:
    for place, layer in enumerate(shards.nested_layers(block)):
        for attribute, initializer in vars(layer).items():
            if isinstance(initializer, keras.initializers.Initializer):
                name = f"{seed}/{block.name}/{place}/{layer.name}/{attribute}"
                initializer.seed = _digest(name) >> 1


def _digest(name: str) -> int:  # of 32 bits
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def _check_names(blocks: Sequence[keras.Layer]) -> None:
    paths = [v.path for block in blocks for v in block.weights]
    repeated = sorted({path for path in paths if paths.count(path) > 1})
    if repeated:
        raise ModelError(
            f"weights need names of their own, but {repeated[0]!r} is given twice: name the layers."
        )
