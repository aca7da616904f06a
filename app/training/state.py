"""Holds everything that training changes: weights, statistics, optimizer slots, loss scale.

All are plain `tf.Variable`s under the names of their weights, the same on every replica
after every step. This is what is broadcast, checkpointed and hashed. The names do not depend
on how the model is cut or split; a `Part` is what one stage holds of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from app.config import Experiment
from app.parallel.placement import Placement, host_device
from app.parallel.sharded import Sharded, Weight
from app.training import per_weight, step_sums
from app.training.building import BuiltModel, build
from input.batches import DataSet
from models import blocks, shards

Snapshot: TypeAlias = dict[str, tf.Tensor]  # whole tensors in this process, by name


class Part:
    """A contiguous run of blocks on one stage, and the variables that go with them.

    Attributes:
        blocks: Keras layers, first to last.
        first: place of the first of them in the whole model.
        device: the stage's, or the first of its devices.
        trainable: variables that gradients change; each shard of a split weight is one.
        statistics: weights that follow the mean over the micro-batches, and their momentum.
        slots: for each slot of the optimizer, one variable per trainable one.
        averages: of all variables, in their order; none without `ema_decay`.
        outer: momenta of the optimizer between rounds (`strategies/local_sgd.py`), one per
            trainable variable, or none.
        num_sums: numbers that a step sums beside gradients and statistics (`step_sums.py`).
        names: of the weight that each trainable variable is, or is a shard of.
    """

    def __init__(self, built: BuiltModel, run: range, device: str, experiment: Experiment) -> None:
        o, rule = experiment.optimization, experiment.update
        self.num_sums = step_sums.size(experiment.objective)
        self.blocks, self.first, self.device = built.blocks[run.start : run.stop], run.start, device
        self._axes = built.axes
        trainable = [v for block in self.blocks for v in block.trainable_variables]
        variables = [v for block in self.blocks for v in block.weights]
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
            [variable_like(v, o.optimizer.initial(slot, v)) for v in self.trainable]
            for slot in o.optimizer.slots
        ]
        self.averages = [variable_like(v, v.read_value()) for v in self.variables if o.ema_decay]
        has_outer = rule.outer_momentum > 0 or rule.outer_rate != 1
        self.outer = [
            variable_like(v, tf.zeros(v.shape, v.dtype)) for v in self.trainable if has_outer
        ]

    @property
    def weights(self) -> dict[str, Weight]:
        """All weights by name."""
        return self._joined(self._all_names, self.variables)

    def constrain(self) -> None:
        """Applies the weights' Keras constraints."""
        for variable, constraint in self._constraints:
            with tf.device(variable.device):
                variable.assign(constraint(variable.read_value()))

    def state_dict(self, slots: Sequence[str]) -> dict[str, Weight]:
        """Returns all variables of the part by name; `slots` are the names of the slots."""
        variables = {f"weights/{n}": v for n, v in self.weights.items()}
        if self.averages:
            averages = self._joined(self._all_names, self.averages)
            variables |= {f"average/{n}": v for n, v in averages.items()}
        extra = {"outer_momentum": self.outer} if self.outer else {}
        for slot, values in [*zip(slots, self.slots, strict=True), *extra.items()]:
            joined = self._joined(self.names, values)
            variables |= {f"{slot}/{n}": v for n, v in joined.items()}
        return variables

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
        input_spec: of a batch of inputs.
        output_spec: of the outputs for a batch of two.
        target_spec: of a batch of targets; None: not known.
        loss_scale: factor of the loss; 1 except with float16.
        good_steps: steps since the loss scale last changed.
        updates: steps that changed the weights.
        skips: steps that did not, as their gradients were not finite, loss scaling apart.
    """

    def __init__(
        self,
        experiment: Experiment,
        input_spec: Any,
        num_outputs: int,
        placement: Placement | None = None,
        pretrained: Path | None = None,
    ) -> None:
        built = build(experiment, input_spec, num_outputs, placement, pretrained)
        experiment.objective.check_outputs(built.outputs, num_outputs)
        self.input_spec, self.output_spec = input_spec, built.outputs
        self.target_spec: Any = None
        self.placement = placement or Placement.whole(len(built.blocks))
        o = experiment.optimization
        self.optimizer, self.has_average = o.optimizer, o.ema_decay > 0
        self.parts = [
            Part(built, run, devices[0], experiment) for run, devices in self.placement.runs()
        ]
        per_weight.require_matches(o, [name for part in self.parts for name in part.names])
        initial = 2.0**15 if experiment.precision == "float16" else 1.0
        self.loss_scale = tf.Variable(initial, trainable=False)
        self.good_steps = tf.Variable(0, trainable=False)
        self.updates = tf.Variable(0, trainable=False)
        self.skips = tf.Variable(0, trainable=False)

    @classmethod
    def of(
        cls, experiment: Experiment, data: DataSet, placement: Placement | None = None,
        pretrained: Path | None = None,
    ) -> State:  # fmt: skip
        """Returns the state of an experiment's model for these data."""
        outputs = experiment.objective.num_outputs(data)
        state = cls(experiment, data.input_spec, outputs, placement, pretrained)
        state.target_spec = data.target_spec
        if data.target_spec is not None:
            step_sums.check_losses(experiment.objective, state.output_spec, data.target_spec)
        return state

    @property
    def trainable(self) -> list[tf.Variable]:
        """Variables that gradients change, first block to last."""
        return [v for part in self.parts for v in part.trainable]

    @property
    def weights(self) -> dict[str, Weight]:
        """All weights by name, first block to last."""
        return {n: v for part in self.parts for n, v in part.weights.items()}

    def batch_specs(self, micro_batch: int) -> tuple[Any, Any] | None:
        """Returns specs of a micro-batch's inputs and targets; None if all have the same shape.

        With these a step is compiled once, before the first. Compiled by what comes, it would be by
        the first length alone, and again for any: Keras' layers compute in another way for lengths
        that are known, so that the bits would depend on which process met which length first.
        """
        if self.target_spec is None:
            return None
        specs = self.input_spec, self.target_spec
        if not any(None in spec.shape[1:] for spec in tf.nest.flatten(specs)):
            return None

        def of(spec: tf.TensorSpec) -> tf.TensorSpec:
            return tf.TensorSpec([micro_batch, *spec.shape[1:]], spec.dtype)

        inputs, targets = tf.nest.map_structure(of, specs)
        return inputs, targets

    def state_dict(self) -> dict[str, Weight]:
        """Returns all variables, by names that do not depend on the layout."""
        variables: dict[str, Weight] = {
            "loss_scale": self.loss_scale, "good_steps": self.good_steps, "updates": self.updates,
            "skips": self.skips,
        }  # fmt: skip
        for part in self.parts:
            variables |= part.state_dict(self.optimizer.slots)
        return variables

    def outputs(self, inputs: Any) -> Any:
        """Computes the model's outputs outside training, float32, each part on its device."""
        x, seed = inputs, tf.zeros([2], tf.int32)
        for part in self.parts:
            with tf.device(part.device):
                x = blocks.forward(part.blocks, x, False, seed, part.first)
        return tf.nest.map_structure(lambda y: tf.cast(y, tf.float32), x)

    def snapshot(self) -> Snapshot:
        """Returns the values of all variables.

        Nothing is copied: TensorFlow gives a variable new memory if it changes while a tensor
        that was read from it is still held.
        """
        with tf.device(host_device()):
            return {name: tf.identity(v.read_value()) for name, v in self.state_dict().items()}

    def assign(self, snapshot: Mapping[str, tf.Tensor]) -> None:
        """Assigns all variables the values of a snapshot."""
        for name, variable in self.state_dict().items():
            variable.assign(snapshot[name])

    def sha256(self) -> str:
        """Returns the digest of all weights."""
        return sha256_of(self.weights)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Replaces the weights with their moving averages, and restores them afterwards."""
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
    """Returns the digest of the name, type, shape and bytes of each weight, in order of name."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype.name} {tuple(value.shape)}\n".encode())
        digest.update(np.ravel(value.numpy()).view(np.uint8).data)
    return digest.hexdigest()


def weights_of(snapshot: Snapshot) -> Snapshot:
    """Returns the weights among a snapshot's variables, by their own names."""
    prefix = "weights/"
    return {n.removeprefix(prefix): v for n, v in snapshot.items() if n.startswith(prefix)}


def variable_like(variable: tf.Variable, values: tf.Tensor) -> tf.Variable:
    """Creates a variable of the same type on the same device."""
    with tf.device(variable.device):
        return tf.Variable(values, trainable=False, dtype=variable.dtype)
