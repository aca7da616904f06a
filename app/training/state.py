"""Everything that training changes: weights, statistics, optimizer slots, loss scale.

All are plain `tf.Variable`s under the names of their weights, the same on every replica
after every step. This is what is broadcast, checkpointed and hashed. The names do not know
how the model is cut; a `Part` is what one stage holds of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import keras
import tensorflow as tf

from app.config import Experiment
from app.parallel.placement import Placement
from app.training.optimization import SLOTS
from models import blocks

POLICIES = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}


class Part:
    """A contiguous run of blocks on one device, and the variables that go with them.

    Attributes:
        blocks: Keras layers, first to last.
        first: place of the first of them in the whole model.
        device: where all of it is.
        trainable: weights that gradients move.
        statistics: weights that follow the mean over the micro-batches, and their momentum.
        slots: for each slot of the optimizer, a variable a trainable weight.
        average: for each weight, its moving average; empty without `ema_decay`.
    """

    def __init__(
        self,
        blocks_: Sequence[keras.Layer],
        first: int,
        device: str,
        statistics: Sequence[blocks.Statistic],
        optimizer: str,
        has_average: bool,
    ) -> None:
        self.blocks, self.first, self.device = list(blocks_), first, device
        trainable = [v for block in self.blocks for v in block.trainable_variables]
        variables = [v for block in self.blocks for v in block.variables]
        self.names = [v.path for v in trainable]
        self.trainable: list[tf.Variable] = [v.value for v in trainable]
        own = {v.path for v in variables}
        self.statistics = [
            (s.variable.value, s.momentum) for s in statistics if s.variable.path in own
        ]
        self.weights: dict[str, tf.Variable] = {v.path: v.value for v in variables}
        with tf.device(device):
            self.slots = [
                [_beside(v, tf.zeros(v.shape, v.dtype)) for v in self.trainable]
                for _ in SLOTS[optimizer]
            ]
            self.average = (
                {n: _beside(v, v.read_value()) for n, v in self.weights.items()}
                if has_average
                else {}
            )


class State:
    """The model's blocks, built on their devices, and the variables of its training.

    Attributes:
        parts: the model in order, cut as `placement` says.
        loss_scale: what the loss is multiplied by; 1 but for float16.
        good_steps: steps since the loss scale last changed.
        updates: steps that changed the weights.
    """

    def __init__(
        self,
        experiment: Experiment,
        input_spec: tf.TensorSpec,
        num_classes: int,
        placement: Placement | None = None,
        pretrained: Path | None = None,
    ) -> None:
        model = experiment.model
        start(experiment)
        blocks_ = list(model.blocks(num_classes))
        placement = placement or Placement.whole(len(blocks_))
        statistics = blocks.build(
            blocks_, zeros(input_spec), experiment.seed, placement.each_block()
        )
        if pretrained:
            model.load(blocks_, pretrained)  # type: ignore[attr-defined]
        o = experiment.optimization
        self.optimizer, self.has_average = o.optimizer, o.ema_decay > 0
        self.parts = [
            Part(blocks_[run.start : run.stop], run.start, device, statistics, o.optimizer,
                 self.has_average)
            for run, device in placement.runs()
        ]  # fmt: skip
        self.placement = placement
        initial = 2.0**15 if experiment.precision == "float16" else 1.0
        self.loss_scale = tf.Variable(initial, trainable=False)
        self.good_steps = tf.Variable(0, trainable=False)
        self.updates = tf.Variable(0, trainable=False)

    @property
    def trainable(self) -> list[tf.Variable]:
        """Weights that gradients move, first block to last."""
        return [v for part in self.parts for v in part.trainable]

    @property
    def weights(self) -> dict[str, tf.Variable]:
        """All weights by name, first block to last."""
        return {n: v for part in self.parts for n, v in part.weights.items()}

    def named(self) -> dict[str, tf.Variable]:
        """All variables, by names that do not depend on the layout."""
        named = {
            "loss_scale": self.loss_scale, "good_steps": self.good_steps, "updates": self.updates
        }  # fmt: skip
        for part in self.parts:
            named |= {f"weights/{n}": v for n, v in part.weights.items()}
            named |= {f"average/{n}": v for n, v in part.average.items()}
            for slot, variables in zip(SLOTS[self.optimizer], part.slots, strict=True):
                named |= {f"{slot}/{n}": v for n, v in zip(part.names, variables, strict=True)}
        return named

    def logits(self, inputs: tf.Tensor) -> tf.Tensor:
        """The model's answer, without training, each part on its device; float32 [b, K]."""
        x, seed = inputs, tf.zeros([2], tf.int32)
        for part in self.parts:
            with tf.device(part.device):
                x = blocks.forward(part.blocks, x, False, seed, part.first)
        return tf.cast(x, tf.float32)

    def sha256(self) -> str:
        """Of all weights: name, shape and bytes of each, in order of name."""
        digest = hashlib.sha256()
        for name, variable in sorted(self.weights.items()):
            digest.update(f"{name} {variable.dtype.name} {tuple(variable.shape)}\n".encode())
            digest.update(variable.numpy().tobytes())
        return digest.hexdigest()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the moving averages in the place of the weights, and the weights back after."""
        kept = {name: tf.identity(v) for name, v in self.weights.items()}
        for part in self.parts:
            for name, variable in part.weights.items():
                variable.assign(part.average[name])
        try:
            yield
        finally:
            for name, variable in self.weights.items():
                variable.assign(kept[name])


def start(experiment: Experiment) -> None:
    """What Keras must know before a block is made."""
    keras.utils.clear_session()  # names Keras makes up start from 1 again
    keras.config.set_dtype_policy(POLICIES[experiment.precision])
    keras.utils.set_random_seed(experiment.seed)  # an initializer may draw its own seed here


def zeros(spec: tf.TensorSpec, batch: int = 2, length: int = 8) -> tf.Tensor:
    """A batch of nothing: its first unknown dimension is `batch`, others are `length`."""
    shape = [batch if i == 0 else d or length for i, d in enumerate(spec.shape)]
    return tf.zeros(shape, spec.dtype)


def _beside(variable: tf.Variable, values: tf.Tensor) -> tf.Variable:
    return tf.Variable(values, trainable=False, dtype=variable.dtype)
