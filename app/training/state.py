"""Everything that training changes: weights, statistics, optimizer slots, loss scale.

All are plain `tf.Variable`s under the names of their weights, the same on every replica
after every step. This is what is broadcast, checkpointed and hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf

from app.config import Experiment
from models import blocks

POLICIES = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}


class State:
    """The model's blocks, built, and the variables of its training.

    Attributes:
        blocks: the model, first block to last.
        trainable: weights that gradients move.
        statistics: weights that follow the mean over the micro-batches, and their momentum.
        momentum: one slot a trainable weight.
        average: moving averages of all weights; empty without `ema_decay`.
        loss_scale: what the loss is multiplied by; 1 but for float16.
        good_steps: steps since the loss scale last changed.
    """

    def __init__(
        self, experiment: Experiment, input_shape: tuple[int, ...], num_classes: int
    ) -> None:
        keras.utils.clear_session()  # names Keras makes up start from 1 again
        keras.config.set_dtype_policy(POLICIES[experiment.precision])
        keras.utils.set_random_seed(experiment.seed)  # an initializer may draw its own seed here
        self.blocks = list(experiment.model.blocks(num_classes))
        statistics = blocks.build(self.blocks, tf.zeros([2, *input_shape]), experiment.seed)
        trainable = [v for block in self.blocks for v in block.trainable_variables]
        self.trainable: list[tf.Variable] = [v.value for v in trainable]
        self.statistics = [(s.variable.value, s.momentum) for s in statistics]
        self.weights = {v.path: v.value for block in self.blocks for v in block.variables}

        def slot(variable: tf.Variable, values: tf.Tensor) -> tf.Variable:
            return tf.Variable(values, trainable=False, dtype=variable.dtype)

        self.momentum = [slot(v, tf.zeros(v.shape)) for v in self.trainable]
        has_average = experiment.optimization.ema_decay > 0
        self.average = {n: slot(v, v) for n, v in self.weights.items()} if has_average else {}
        initial = 2.0**15 if experiment.precision == "float16" else 1.0
        self.loss_scale = tf.Variable(initial, trainable=False)
        self.good_steps = tf.Variable(0, trainable=False)
        self._names = [v.path for v in trainable]

    def named(self) -> dict[str, tf.Variable]:
        """All variables, by names that do not depend on the layout."""
        slots = dict(zip(self._names, self.momentum, strict=True))
        return (
            {f"weights/{n}": v for n, v in self.weights.items()}
            | {f"momentum/{n}": v for n, v in slots.items()}
            | {f"average/{n}": v for n, v in self.average.items()}
            | {"loss_scale": self.loss_scale, "good_steps": self.good_steps}
        )

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
        for name, variable in self.weights.items():
            variable.assign(self.average[name])
        try:
            yield
        finally:
            for name, variable in self.weights.items():
                variable.assign(kept[name])
