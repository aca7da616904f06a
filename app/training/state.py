"""Everything that training changes: weights, statistics, optimizer slots, loss scale.

All are plain `tf.Variable`s under the names of their weights, the same on every replica
after every step. This is what is broadcast, checkpointed and hashed. The names do not know
how the model is cut or split; a `Part` is what one stage holds of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from app.config import Experiment
from app.parallel.placement import Placement, here
from app.parallel.sharded import Sharded, Weight
from app.training.building import Built, build
from models import blocks, shards

Snapshot: TypeAlias = dict[str, tf.Tensor]  # whole tensors in this process, by name


class Part:
    """A contiguous run of blocks on one stage, and the variables that go with them.

    Attributes:
        blocks: Keras layers, first to last.
        first: place of the first of them in the whole model.
        device: the stage's, or the first of its devices.
        trainable: variables that gradients move; of a split weight each shard is one.
        statistics: weights that follow the mean over the micro-batches, and their momentum.
        slots: for each slot of the optimizer, a variable a trainable one.
        averages: of all variables, in their order; none without `ema_decay`.
        outer: of the optimizer between rounds (`local.py`), a variable a trainable one, or none.
        names: of the weight that each trainable variable is, or is a shard of.
    """

    def __init__(self, built: Built, run: range, device: str, experiment: Experiment) -> None:
        o, rule = experiment.optimization, experiment.update
        self.blocks, self.first, self.device = built.blocks[run.start : run.stop], run.start, device
        self._axes = built.axes
        trainable = [v for block in self.blocks for v in block.trainable_variables]
        variables = [v for block in self.blocks for v in block.variables]
        own = {v.path for v in variables}
        self.statistics = [
            (s.variable.value, s.momentum) for s in built.statistics if s.variable.path in own
        ]
        self.trainable: list[tf.Variable] = [v.value for v in trainable]
        self.variables: list[tf.Variable] = [v.value for v in variables]
        self._constraints = [(v.value, v.constraint) for v in trainable if v.constraint]
        self.names = [shards.whole_name(v) for v in trainable]
        self._all_names = [shards.whole_name(v) for v in variables]
        self.slots = [
            [beside(v, tf.zeros(v.shape, v.dtype)) for v in self.trainable]
            for _ in o.optimizer.slots
        ]
        self.averages = [beside(v, v.read_value()) for v in self.variables if o.ema_decay]
        has_outer = rule.outer_momentum > 0 or rule.outer_rate != 1
        self.outer = [beside(v, tf.zeros(v.shape, v.dtype)) for v in self.trainable if has_outer]

    @property
    def weights(self) -> dict[str, Weight]:
        """All weights by name."""
        return self._joined(self._all_names, self.variables)

    def constrain(self) -> None:
        """Puts weights that have moved where their Keras constraints want them."""
        for variable, constraint in self._constraints:
            with tf.device(variable.device):
                variable.assign(constraint(variable.read_value()))

    def named(self, slots: Sequence[str]) -> dict[str, Weight]:
        """Everything of the part by name; `slots` are those of the slots."""
        named = {f"weights/{n}": v for n, v in self.weights.items()}
        if self.averages:
            averages = self._joined(self._all_names, self.averages)
            named |= {f"average/{n}": v for n, v in averages.items()}
        extra = {"outer_momentum": self.outer} if self.outer else {}
        for slot, variables in [*zip(slots, self.slots, strict=True), *extra.items()]:
            joined = self._joined(self.names, variables)
            named |= {f"{slot}/{n}": v for n, v in joined.items()}
        return named

    def _joined(self, names: Sequence[str], variables: Sequence[tf.Variable]) -> dict[str, Weight]:
        shards: dict[str, list[tf.Variable]] = {}
        for name, variable in zip(names, variables, strict=True):
            shards.setdefault(name, []).append(variable)
        return {
            n: Sharded(tuple(v), self._axes[n]) if n in self._axes else v[0]
            for n, v in shards.items()
        }


class State:
    """The model's blocks, built on their devices, and the variables of its training.

    Attributes:
        parts: the model in order, cut as `placement` says.
        loss_scale: what the loss is multiplied by; 1 but for float16.
        good_steps: steps since the loss scale last changed.
        updates: steps that changed the weights.
        skips: steps that did not, as their gradients were not finite (not for the loss scale).
    """

    def __init__(
        self,
        experiment: Experiment,
        input_spec: tf.TensorSpec,
        num_classes: int,
        placement: Placement | None = None,
        pretrained: Path | None = None,
    ) -> None:
        built = build(experiment, input_spec, num_classes, placement, pretrained)
        self.placement = placement or Placement.whole(len(built.blocks))
        o = experiment.optimization
        self.optimizer, self.has_average = o.optimizer, o.ema_decay > 0
        self.parts = [
            Part(built, run, devices[0], experiment) for run, devices in self.placement.runs()
        ]
        initial = 2.0**15 if experiment.precision == "float16" else 1.0
        self.loss_scale = tf.Variable(initial, trainable=False)
        self.good_steps = tf.Variable(0, trainable=False)
        self.updates = tf.Variable(0, trainable=False)
        self.skips = tf.Variable(0, trainable=False)

    @property
    def trainable(self) -> list[tf.Variable]:
        """Variables that gradients move, first block to last."""
        return [v for part in self.parts for v in part.trainable]

    @property
    def weights(self) -> dict[str, Weight]:
        """All weights by name, first block to last."""
        return {n: v for part in self.parts for n, v in part.weights.items()}

    def named(self) -> dict[str, Weight]:
        """All variables, by names that do not depend on the layout."""
        named: dict[str, Weight] = {
            "loss_scale": self.loss_scale, "good_steps": self.good_steps, "updates": self.updates,
            "skips": self.skips,
        }  # fmt: skip
        for part in self.parts:
            named |= part.named(self.optimizer.slots)
        return named

    def logits(self, inputs: tf.Tensor) -> tf.Tensor:
        """The model's answer, without training, each part on its device; float32 [b, K]."""
        x, seed = inputs, tf.zeros([2], tf.int32)
        for part in self.parts:
            with tf.device(part.device):
                x = blocks.forward(part.blocks, x, False, seed, part.first)
        return tf.cast(x, tf.float32)

    def snapshot(self) -> Snapshot:
        """All variables as they are now.

        Nothing is copied: TensorFlow gives a variable new memory when it changes while a tensor
        that was read of it is still held.
        """
        with tf.device(here()):
            return {name: tf.identity(v.read_value()) for name, v in self.named().items()}

    def assign(self, snapshot: Mapping[str, tf.Tensor]) -> None:
        """Gives all variables the values of a snapshot."""
        for name, variable in self.named().items():
            variable.assign(snapshot[name])

    def sha256(self) -> str:
        """Of all weights."""
        return sha256_of(self.weights)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the moving averages in the place of the weights, and the weights back after."""
        variables = [v for part in self.parts for v in part.variables]
        averages = [v for part in self.parts for v in part.averages]
        kept = [tf.identity(v) for v in variables]
        for variable, average in zip(variables, averages, strict=True):
            variable.assign(average)
        try:
            yield
        finally:
            for variable, value in zip(variables, kept, strict=True):
                variable.assign(value)


def sha256_of(weights: Mapping[str, Weight | tf.Tensor]) -> str:
    """Of name, type, shape and bytes of each, in order of name."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype.name} {tuple(value.shape)}\n".encode())
        digest.update(np.ravel(value.numpy()).view(np.uint8).data)
    return digest.hexdigest()


def weights_of(snapshot: Snapshot) -> Snapshot:
    """The weights among a snapshot's variables, by their own names."""
    prefix = "weights/"
    return {n.removeprefix(prefix): v for n, v in snapshot.items() if n.startswith(prefix)}


def beside(variable: tf.Variable, values: tf.Tensor) -> tf.Variable:
    """A variable of the same type on the same device."""
    with tf.device(variable.device):
        return tf.Variable(values, trainable=False, dtype=variable.dtype)
