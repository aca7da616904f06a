"""The protocol of a model: an ordered list of blocks, each a Keras layer.

A block is called as `block(x, training=..., seed=...)` and returns the next block's x:

    x         activations: a tensor [B, ...] or a tuple of such; the first block gets the
              data set's inputs
    training  Python bool
    seed      int32 [2], keyed by (experiment seed, micro-batch, block): draw from it with
              `tf.random.stateless_*`, and no process, stage or order shows in the result

A block whose `call` does not name `training` or `seed` is not given them, so any Keras
layer without hidden random or moving state is a block as it is.

Moving statistics are not assigned in `call`, which runs once a micro-batch: a block
*records* the micro-batch's value, and the training step takes the mean over all of them.

What Keras' layers add to the loss (`add_loss`, regularizers) is part of the objective, as
`losses.py` says; constraints of weights are applied after each update, as Keras does.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from models import ModelError, losses, shares
from models.shares import Place

Activations = Any  # a tensor or a tuple of tensors

_recording = threading.local()  # pipeline stages are traced by threads of their own


@dataclass(frozen=True)
class Statistic:
    """One micro-batch's value for a variable that follows the mean of all of them."""

    variable: keras.Variable
    value: tf.Tensor
    momentum: float  # variable = momentum * variable + (1 - momentum) * mean


@dataclass(frozen=True)
class Recorded:
    """What the blocks of a training step leave beside their activations.

    Attributes:
        loss_weight: what a block's loss counts in what is differentiated, float32 [].
        statistics: in the order of the blocks.
        losses: float32 [] of each block that has any, likewise.
    """

    loss_weight: tf.Tensor
    statistics: list[Statistic] = field(default_factory=list)
    losses: list[tf.Tensor] = field(default_factory=list)


@contextlib.contextmanager
def recording(loss_weight: tf.Tensor | float = 1.0) -> Iterator[Recorded]:
    """Collects what the blocks called inside record, and adds their losses to the objective."""
    outer = getattr(_recording, "recorded", None)
    _recording.recorded = Recorded(tf.convert_to_tensor(loss_weight))
    try:
        yield _recording.recorded
    finally:
        _recording.recorded = outer


def record(variable: keras.Variable, value: tf.Tensor, momentum: float) -> None:
    """Hands a micro-batch's statistic to the step that is collecting, if one is."""
    recorded = getattr(_recording, "recorded", None)
    if recorded is not None:
        recorded.statistics.append(Statistic(variable, value, momentum))


def call(
    block: keras.Layer, x: Activations, training: bool, seed: tf.Tensor, place: int
) -> Activations:
    """Calls one block, giving it what its `call` names; `place` is its own in the model."""
    names = inspect.signature(block.call).parameters
    given: dict[str, Any] = {"training": training} if "training" in names else {}
    if "seed" in names:
        given["seed"] = tf.random.experimental.stateless_fold_in(seed, place)
    return block(x, **given)


def forward(
    blocks: Sequence[keras.Layer], x: Activations, training: bool, seed: tf.Tensor, first: int = 0
) -> Activations:
    """Runs blocks in order; `first` is the place of the first of them in the whole model."""
    recorded: Recorded | None = getattr(_recording, "recorded", None)
    for place, block in enumerate(blocks, first):
        x = call(block, x, training, seed, place)
        loss = losses.of(block) if recorded else None
        if recorded and loss is not None:
            recorded.losses.append(loss)
            x = losses.attach(x, loss, recorded.loss_weight, block.name)
    return x


@contextlib.contextmanager
def reading(blocks: Sequence[keras.Layer], values: Sequence[tf.Tensor]) -> Iterator[None]:
    """Inside, the blocks' trainable variables have these values, in order; none: their own."""
    if not values:
        yield
        return
    variables = [v for block in blocks for v in block.trainable_variables]
    mapping = list(zip(variables, values, strict=True))
    with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
        yield


def build(
    blocks: Sequence[keras.Layer],
    inputs: tf.Tensor,
    seed: int,
    places: Sequence[Sequence[Place]] | None = None,
) -> list[Statistic]:
    """Creates every weight, each a function of (seed, its block's and its layer's name) alone.

    Returns the statistics of the model, in the order in which its blocks record them.

    Args:
        blocks: the whole model's, not yet built.
        inputs: one batch of inputs of any size.
        seed: the experiment's.
        places: for each block, the device of each of its shares; the first is the block's.

    Raises:
        ModelError: two weights of one name, a moving state outside the protocol, or losses that
            no gradient would reach.
    """
    for block in blocks:
        for place, layer in enumerate(shares.layers_of(block)):
            for attribute, initializer in vars(layer).items():
                if isinstance(initializer, keras.initializers.Initializer):
                    key = f"{seed}/{block.name}/{place}/{layer.name}/{attribute}"
                    digest = hashlib.sha256(key.encode()).digest()
                    initializer.seed = int.from_bytes(digest[:4], "little") >> 1
    key = tf.zeros([2], tf.int32)
    x = inputs
    places = places or [[contextlib.nullcontext]] * len(blocks)
    statistics: list[Statistic] = []
    for place, (block, where) in enumerate(zip(blocks, places, strict=True)):
        # For what a layer draws by initializers that are not its attributes.
        digest = hashlib.sha256(f"{seed}/{block.name}".encode()).digest()
        keras.utils.set_random_seed(int.from_bytes(digest[:4], "little"))
        shares.put(block, where)
        if type(block).build is keras.Layer.build:
            block.built = True  # by the call: Keras would call it on symbols first
        with where[0](), recording() as recorded:
            x = forward([block], x, True, key, place)
        # What is inside it, Keras may have called on symbols first.
        statistics += [s for s in recorded.statistics if not tf.is_symbolic_tensor(s.value)]
    paths = [v.path for block in blocks for v in block.variables]
    repeated = sorted({path for path in paths if paths.count(path) > 1})
    if repeated:
        raise ModelError(
            f"weights need names of their own, but {repeated[0]!r} is given twice: name the layers."
        )
    moved = {s.variable.path for s in statistics}
    for variable in (v for block in blocks for v in block.non_trainable_variables):
        if variable.path not in moved:
            raise ModelError(
                f"{variable.path} changes during a call, once a micro-batch and process: use "
                "models.normalization.BatchNormalization, stateless dropout, or blocks.record()."
            )
    return statistics
