"""Computes the forward pass of a trained model: batches stream through its stages.

An operator runs on one thread; a process keeps its cores busy with a batch each (a lane). So the
numbers depend neither on cores, processes nor stages: a batch meets the same operators everywhere.
"""

import threading
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from app.objectives import Objective
from app.parallel import placement, schedule
from app.parallel.pipeline import Pipeline, StageStoppedError
from app.parallel.schedule import Task
from app.training.state import Part, State
from input.batches import DataSet
from input.raw import Limits
from models import blocks

Read = Callable[[int], Any]  # returns the inputs of a batch by its number; None if it has none
Done = Callable[[int, Any], None]  # takes the scores [B, ...] of a batch


class Forward:
    """A model's forward pass, compiled to a function for each stage.

    Args:
        state: holds the model on its devices.
        spec: of a batch of inputs.
        lanes: batches that a stage computes at once.
        objective: what outputs mean.
    """

    def __init__(self, state: State, spec: Any, lanes: int, objective: Objective) -> None:
        self.parts, self.lanes = state.parts, lanes
        self.functions: list[Any] = []
        for part in state.parts:
            is_last = part is state.parts[-1]
            function = _compiled(part, spec, objective.scores if is_last else None)
            outputs = function.get_concrete_function().structured_outputs
            spec = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), outputs)
            self.functions.append(function)

    def __call__(self, count: int, read: Read, done: Done) -> None:
        """Computes batches.

        Args:
            count: their number.
            read: called once for each, roughly in their order, by as many threads as lanes.
            done: called once for each, by as many threads.
        """
        orders = schedule.forward_only(len(self.parts), self.lanes, count)
        Pipeline(orders, len(self.parts))(_Work(self, read, done))


def preprocessor(data: DataSet, limits: Limits) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the compiled function from what clients have, string [b], to inputs [b, ...]."""
    function = tf.function(
        lambda raw: data.preprocess(raw, limits),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    function.get_concrete_function()  # traced now, not while it is timed
    return function


def _compiled(part: Part, spec: Any, scores: Callable[[Any], Any] | None) -> Any:
    def run(x: Any) -> Any:
        with tf.device(part.device):
            y = blocks.forward(part.blocks, x, False, tf.zeros([2], tf.int32), part.first)
            if scores is None:
                return y
            return scores(tf.nest.map_structure(lambda one: tf.cast(one, tf.float32), y))

    return tf.function(run, input_signature=[spec], autograph=False)


class _Work:
    """The work of a pipeline's threads; limits how many batches are under way at once."""

    def __init__(self, model: Forward, read: Read, done: Done) -> None:
        self.model, self.read, self.done = model, read, done
        self.room = threading.Semaphore(2 * len(model.parts) * model.lanes)
        self.failed = False

    def forward(self, task: Task, x: Any) -> Any:
        try:
            return self._forward(task, x)
        except BaseException:
            self.failed = True
            self.room.release()  # a thread that waits for room stops too
            raise

    def _forward(self, task: Task, x: Any) -> Any:
        if task.part == 0:
            self.room.acquire()
            if self.failed:
                raise StageStoppedError
            x = self.read(task.micro_batch)
        part = self.model.parts[task.part]
        if x is not None:
            with tf.device(part.device):
                x = tf.nest.map_structure(tf.identity, x)  # to this device, once
            x = placement.to_host(part.device, self.model.functions[task.part](x))
        if task.part == len(self.model.parts) - 1:
            y = None if x is None else tf.nest.map_structure(lambda one: one.numpy(), x)
            self.done(task.micro_batch, y)
            self.room.release()
        return x

    def backward(self, task: Task, gradient: Any) -> Any:
        raise AssertionError("prediction has no backward pass")

    def finish(self, stage: int) -> None:
        """Does nothing: prediction has no gradients to sum."""
