"""Takes a training step: the protocol of a step, and the data-parallel one on one device.

A process runs its micro-batches one after the other. All but the last are added up in
place; while the last one's backward pass still computes, its first gradients are already
on their way:

    rank 0   forward backward | forward backward
                                          all-reduce...   update
    rank 1   forward backward | forward backward
                                          all-reduce...   update

With one micro-batch a process this is plain data parallelism in two compiled functions: the
second is the update, as whether there is one depends on the first's result.
(All that is compiled is TensorFlow's own operations: AutoGraph would look for Python's control
flow to convert, find none, and take seconds of every rank's start.)
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from app.config import Experiment, Layout
from app.training import step_sums, sums, update
from app.training.differentiation import Differentiation, MicroBatch, Values
from app.training.state import State
from app.training.strategy import is_local, load
from app.training.sums import Subtrees

Batches = Iterator[tuple[Any, ...]]  # (inputs, targets, ids of examples)


class Step(abc.ABC):
    """What the trainer needs of a training step, whatever the strategy that takes it.

    Attributes:
        comes_in_bursts: many steps can be ready together, so that their typical duration is the
            mean, not the median.
        examples: ids of the examples of the step that was applied last, by the micro-batch's
            place; None: they are those that were read last.
    """

    comes_in_bursts = False
    examples: Mapping[int, tf.Tensor] | None = None

    @abc.abstractmethod
    def __call__(self, step: int, batches: Batches, rate: float) -> dict[str, tf.Tensor]:
        """Runs step `step` on this process's next micro-batches at learning rate `rate`.

        Returns `step_sums.names`, `finite` (else no weight was changed) and `skipped` (not finite
        because of the float16 loss scale), each [].
        """

    @property
    @abc.abstractmethod
    def bytes_sent(self) -> float:
        """Bytes that this process sends in a step, for the sums."""

    def is_round(self, done: int) -> bool:
        """Returns whether all processes hold the same state after `done` steps."""
        return True

    def missing(self) -> Sequence[int]:
        """Returns the steps before the furthest applied one that are not applied yet."""
        return ()

    def results(self) -> dict[str, Any]:
        """Returns what result.json holds of this strategy."""
        return {}

    def table(self) -> list[dict[str, Any]]:
        """Returns a row per part of the model and device; none if all is on one device."""
        return []

    def close(self) -> None:
        """Leaves nothing running."""
        return


class SingleStageStep(Step):
    """A step of a model on one device; several stages take that of `strategies/pipelined.py`.

    A step whose gradients are not finite changes no weight. Every replica decides so from
    the same sums.
    """

    def __init__(
        self, experiment: Experiment, layout: Layout, state: State, micro_batches: range
    ) -> None:
        self.experiment, self.layout, self.state = experiment, layout, state
        self.micro_batches = micro_batches
        self.part = state.parts[0]
        # Exact sums are those of a pipeline, whose parts are functions of their own.
        self.model = Differentiation(experiment, state, 0, is_compiled=layout.exact)
        count = len(self.part.trainable) + len(self.part.statistics) + 1
        names = [f"sum{i}" for i in range(count)]
        self.sums = sums.make(experiment, layout, self.part, names, micro_batches)
        self._move = tf.function(update.move, autograph=False)
        self._specs = state.batch_specs(experiment.micro_batch)
        self._compiled: list[Any] = []

    @property
    def bytes_sent(self) -> float:
        """See base class."""
        return self.sums.bytes_sent

    def __call__(self, step: int, batches: Batches, rate: float) -> dict[str, tf.Tensor]:
        """See base class."""
        experiment, state = self.experiment, self.state
        first = step * experiment.num_micro_batches
        learning_rate = tf.constant(rate, tf.float32)
        for place in self.micro_batches[:-1]:
            inputs, targets, _ = next(batches)
            number = tf.constant(first + place, tf.int64)
            self._compile(self._accumulate)
            self.sums.hold(place, self._accumulate(inputs, targets, number))
        inputs, targets, _ = next(batches)
        number = tf.constant(first + self.micro_batches[-1], tf.int64)
        held = self.sums.held()
        self._compile(self._finish, held)
        total, norms, metrics = self._finish(inputs, targets, number, held)
        if metrics["finite"]:
            count = tf.cast(state.updates + 1, tf.float32)
            norm, scale = metrics["gradient_norm"], metrics["scale"]
            self._move(experiment, self.part, total, norms, learning_rate, count, norm, scale)
        update.settle(experiment, state, metrics["finite"])
        self.sums.settle(metrics["finite"])
        return metrics

    def _compile(self, function: Any, *more: Any) -> None:
        """Compiles a function for any length that the data may have, before its first call."""
        if self._specs and function not in self._compiled:
            self._compiled.append(function)
            number = tf.TensorSpec([], tf.int64)
            function.get_concrete_function(*self._specs, number, *more)

    @tf.function(autograph=False, reduce_retracing=True)
    def _accumulate(self, inputs: Any, targets: Any, number: tf.Tensor) -> list[tf.Tensor]:
        return self.sums.accumulate(self._values(inputs, targets, number))

    @tf.function(autograph=False, reduce_retracing=True)
    def _finish(
        self, inputs: Any, targets: Any, number: tf.Tensor, held: Subtrees
    ) -> tuple[list[tf.Tensor], tf.Tensor, dict[str, tf.Tensor]]:
        total = self.sums.total(held, self._values(inputs, targets, number))
        norms, scale = update.norms(self.part, total), self.state.loss_scale.read_value()
        return total, norms, step_sums.judge(self.experiment, [norms], total[-1], scale)

    def _values(self, inputs: Any, targets: Any, number: tf.Tensor) -> Values:
        """Returns one micro-batch's terms of the step's sums: already divided by G."""
        weight = step_sums.weight(self.experiment, targets)
        micro_batch = MicroBatch(number, targets, self.state.loss_scale, weight)
        _, record = self.model.forward(inputs, micro_batch)
        return self.model.backward(record, micro_batch)[1]


def make_step(
    experiment: Experiment, layout: Layout, state: State, micro_batches: range,
    order: Sequence[int], furthest: int = -1,
) -> Step:  # fmt: skip
    """Makes the step of a layout and an update rule.

    Args:
        experiment: with its update rule.
        layout: of the job.
        state: that the step advances.
        micro_batches: this process's places in a step.
        order: the steps to come.
        furthest: the last that is applied already.
    """
    step: Step
    if layout.workers:
        kind = load("parameter_server").ParameterServerStep
        step = kind(experiment, layout, state, order, furthest)
    elif layout.devices > 1:
        step = load("pipelined").PipelinedStep(experiment, layout, state, micro_batches)
    else:
        step = SingleStageStep(experiment, layout, state, micro_batches)
    if is_local(experiment.update):
        last = order[-1] + 1 if order else 0
        step = load("local_sgd").LocalSGDStep(
            experiment, state, step, micro_batches, layout.processes, last
        )
    return step
