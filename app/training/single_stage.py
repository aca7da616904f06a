"""One training step on one stage, the fast way.

A process runs its micro-batches one after the other. All but the last are added up in
place; while the last one's backward pass still computes, its first gradients are already
on their way:

    rank 0   forward backward | forward backward
                                          all-reduce...   update
    rank 1   forward backward | forward backward
                                          all-reduce...   update

With one micro-batch a process this is plain data parallelism in two compiled functions: the
second is the update, as whether there is one depends on the first's result.
(What is compiled here is TensorFlow's own operations throughout: AutoGraph would look for
Python's control flow to convert, find none, and take seconds of every rank's start.)
Several stages take the step of `strategies/pipelined.py`.
"""

from __future__ import annotations

import tensorflow as tf

from app.config import Experiment, Layout
from app.training import sums, update
from app.training.differentiation import Differentiation, MicroBatch, Values
from app.training.state import State
from app.training.step import Batches, Step
from app.training.sums import Subtrees


class SingleStageStep(Step):
    """Calling it advances the state by one step; returns the step's metrics.

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
            self.sums.hold(place, self._accumulate(inputs, targets, number))
        inputs, targets, _ = next(batches)
        number = tf.constant(first + self.micro_batches[-1], tf.int64)
        total, norms, metrics = self._finish(inputs, targets, number, self.sums.held())
        if metrics["finite"]:
            scale, count = state.loss_scale.read_value(), tf.cast(state.updates + 1, tf.float32)
            norm = metrics["gradient_norm"]
            self._move(experiment, self.part, total, norms, learning_rate, count, norm, scale)
        update.settle(experiment, state, metrics["finite"])
        self.sums.settle(metrics["finite"])
        return metrics

    @tf.function(autograph=False, reduce_retracing=True)
    def _accumulate(
        self, inputs: tf.Tensor, targets: tf.Tensor, number: tf.Tensor
    ) -> list[tf.Tensor]:
        return self.sums.accumulate(self._values(inputs, targets, number))

    @tf.function(autograph=False, reduce_retracing=True)
    def _finish(
        self, inputs: tf.Tensor, targets: tf.Tensor, number: tf.Tensor, held: Subtrees
    ) -> tuple[list[tf.Tensor], tf.Tensor, dict[str, tf.Tensor]]:
        total = self.sums.total(held, self._values(inputs, targets, number))
        norms, scale = update.norms(self.part, total), self.state.loss_scale.read_value()
        return total, norms, update.judge([norms], total[-1], scale, self.experiment.global_batch)

    def _values(self, inputs: tf.Tensor, targets: tf.Tensor, number: tf.Tensor) -> Values:
        """One micro-batch's part of the step: already divided by G, so parts add up."""
        micro_batch = MicroBatch(number, targets, self.state.loss_scale)
        _, record = self.model.forward(inputs, micro_batch)
        return self.model.backward(record, micro_batch)[1]
