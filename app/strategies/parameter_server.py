"""Takes training steps with parameter servers, which hold the weights; workers send gradients.

    synchronous (staleness 0)                 asynchronous, or bounded

    chief     |      sum, apply|              chief     apply 0   apply 1  apply 2
    worker 0  |slice of step 0 |              worker 0  |step 0  |step 2      |
    worker 1  |slice of step 0 |              worker 1  |step 1       |step 3     |

A worker takes a work item: some micro-batches of a step. It reads the weights once, computes the
sums of its micro-batches, and stores them in a slot: variables beside the weights, on the servers.
Only the chief applies them, one slot at a time. So a worker that dies loses work but no update, and
a work item that is computed again is stored again, not added: every step is applied exactly once.
Weights are read while others are written: in an asynchronous step some may be newer than others.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from app.config import Experiment, Layout
from app.errors import UsageError
from app.parallel.ledger import Ledger
from app.parallel.parameter_server import GreedyPlacement, coordinator, server
from app.parallel.placement import host_device
from app.parallel.topology import slice_of
from app.recovery import heartbeat
from app.training import step_sums, update
from app.training.differentiation import Differentiation, MicroBatch
from app.training.exchange import nbytes
from app.training.state import State, variable_like
from app.training.step import Batches, Step
from input.batches import DataSet

RETRY_SECONDS = 60.0  # for a work item to be given to a worker that lives
WorkItem = tuple[list[tuple[Any, Any]], list[tf.Tensor]]  # (inputs, targets), numbers


class Slot:
    """The variables in which one worker stores its sums.

    Attributes:
        sums: gradients, then statistics, then loss and metrics, beside the weights.
        is_free: set when the last sums that were stored here are applied.
    """

    def __init__(self, step: ParameterServerStep) -> None:
        part = step.state.parts[0]
        variables = [*part.trainable, *(variable for variable, _ in part.statistics)]
        self.sums = [variable_like(v, tf.zeros(v.shape, v.dtype)) for v in variables]
        with tf.device(server(0)):
            self.sums.append(tf.Variable(tf.zeros([part.num_sums]), trainable=False))
        self.step = step
        self.is_free = threading.Event()

    @tf.function(autograph=False, reduce_retracing=True)
    def compute(self, batches: list[tuple[Any, Any]], numbers: list[tf.Tensor]) -> tf.Tensor:
        """Stores the sums over these micro-batches; runs on a worker."""
        weights = [tf.identity(v.read_value()) for v in self.step.state.parts[0].trainable]
        total: list[tf.Tensor] = []
        for (inputs, targets), number in zip(batches, numbers, strict=True):
            with tf.control_dependencies(total):  # one after the other, in the memory of one
                values = self.step.values(weights, inputs, targets, number)
            total = [a + b for a, b in zip(total, values, strict=True)] if total else values
        for variable, value in zip(self.sums, total, strict=True):
            variable.assign(value)
        return self.step.computed.assign_add(1)


class ParameterServerStep(Step):
    """A step that applies the sums of one step to the weights, whichever is ready next.

    Args:
        experiment: whose `update.staleness` says how far ahead workers may be.
        layout: with the number of workers of the cluster whose chief this process is.
        state: its variables are on the servers.
        order: the steps to apply.
        furthest: the last that is applied already.

    Attributes:
        ledger: which steps have begun and which are applied.
        given: number of work items that were given out.
        computed: number of work items that were computed; more than given, if workers died.
    """

    comes_in_bursts = True

    def __init__(
        self, experiment: Experiment, layout: Layout, state: State, order: Sequence[int],
        furthest: int,
    ) -> None:  # fmt: skip
        self.experiment, self.state, self.coordinator = experiment, state, coordinator()
        bound = experiment.update.staleness
        self.ledger = Ledger(order, bound, furthest)
        self.model = Differentiation(experiment, state, 0)
        with tf.device(server(0)):
            self.computed = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.slots = [Slot(self) for _ in range(layout.workers)]
        self._advance = self._synchronous if bound == 0 else self._asynchronous
        self._move = tf.function(update.move, autograph=False)
        self._batches: Batches = iter(())
        self._reading = threading.Lock()  # micro-batches go out in the order of steps
        self._ready: queue.Queue[tuple[int, Slot] | BaseException] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self.given = 0
        self.examples: dict[int, tf.Tensor] = {}
        self._examples: dict[int, dict[int, tf.Tensor]] = {}  # of each step that has begun

    def __call__(self, step: int, batches: Batches, rate: float) -> dict[str, tf.Tensor]:
        """See base class; `step` steps are applied before this one."""
        self._batches = batches
        return self._advance(tf.constant(rate, tf.float32))

    @property
    def bytes_sent(self) -> float:
        """Bytes to and from a worker in a step: all weights, and all sums."""
        part = self.state.parts[0]
        items = len(self.slots) if self.experiment.update.staleness == 0 else 1
        both_ways = sum(map(nbytes, part.trainable)) + sum(map(nbytes, self.slots[0].sums))
        return items * both_ways / len(self.slots)

    def missing(self) -> Sequence[int]:
        """See base class."""
        return self.ledger.missing()

    def results(self) -> dict[str, Any]:
        """Returns the updates' staleness, and counts which show that none was lost or doubled."""
        return {
            "staleness": {str(n): count for n, count in sorted(self.ledger.staleness.items())},
            "updates_applied": int(self.state.updates),
            "shares_computed": int(self.computed),
            "shares_given": self.given,
        }

    def close(self) -> None:
        """Lets no further step begin."""
        self.ledger.close()
        for slot in self.slots:
            slot.is_free.set()

    @tf.function(autograph=False, reduce_retracing=True)
    def values(
        self, weights: list[tf.Tensor], inputs: Any, targets: Any, number: tf.Tensor
    ) -> list[tf.Tensor]:
        """Returns one micro-batch's terms of a step's sums, with these weights."""
        weight = step_sums.weight(self.experiment, targets)
        micro_batch = MicroBatch(number, targets, tf.constant(1.0), weight)
        _, record = self.model.forward(inputs, micro_batch, weights)
        return [tf.convert_to_tensor(v) for v in self.model.backward(record, micro_batch)[1]]

    def _synchronous(self, rate: tf.Tensor) -> dict[str, tf.Tensor]:
        """Takes the next step, a slice of which each worker computes."""
        step = self.ledger.begin()
        assert step is not None
        given = []
        for i, slot in enumerate(self.slots):
            places = slice_of(self.experiment.num_micro_batches, len(self.slots), i)
            item = self._work_item(step, places)
            given.append(self.coordinator.schedule(slot.compute, args=item))
        for result in given:
            await_item(result)
        return self._applied(step, [slot.sums for slot in self.slots], rate)

    def _asynchronous(self, rate: tf.Tensor) -> dict[str, tf.Tensor]:
        """Applies whichever step is ready next."""
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._feed_worker, args=(slot,), daemon=True)
                for slot in self.slots
            ]
            for thread in self._threads:
                thread.start()
        found = self._ready.get()
        if isinstance(found, BaseException):
            raise found
        step, slot = found
        metrics = self._applied(step, [slot.sums], rate)
        slot.is_free.set()
        return metrics

    def _feed_worker(self, slot: Slot) -> None:
        """Gives a worker the next step whenever its slot is free; runs on a thread of its own."""
        try:
            while (begun := self._begin()) is not None:
                step, item = begun
                slot.is_free.clear()
                await_item(self.coordinator.schedule(slot.compute, args=item))
                self._ready.put((step, slot))
                slot.is_free.wait()
        except BaseException as error:  # for the caller to raise
            self._ready.put(error)

    def _begin(self) -> tuple[int, WorkItem] | None:
        with self._reading:
            step = self.ledger.begin()
            if step is None:
                return None
            return step, self._work_item(step, range(self.experiment.num_micro_batches))

    def _work_item(self, step: int, places: range) -> WorkItem:
        """Returns the next micro-batches, and their numbers."""
        self.given += 1
        first = step * self.experiment.num_micro_batches
        numbers = [tf.constant(first + place, tf.int64) for place in places]
        batches = [next(self._batches) for _ in places]
        ids = {place: ids for place, (_, _, ids) in zip(places, batches, strict=True)}
        self._examples.setdefault(step, {}).update(ids)
        return [(inputs, targets) for inputs, targets, _ in batches], numbers

    def _applied(
        self, step: int, slots: list[list[tf.Variable]], rate: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        experiment, state = self.experiment, self.state
        total, norms, metrics = self._sum(slots)
        if metrics["finite"]:
            count = tf.cast(state.updates + 1, tf.float32)
            norm, scale = metrics["gradient_norm"], metrics["scale"]
            self._move(experiment, state.parts[0], total, norms, rate, count, norm, scale)
        update.settle(experiment, state, metrics["finite"])
        self.examples = self._examples.pop(step)
        return {**metrics, "staleness": tf.constant(self.ledger.apply(step))}

    @tf.function(autograph=False)
    def _sum(
        self, slots: list[list[tf.Variable]]
    ) -> tuple[list[tf.Tensor], tf.Tensor, dict[str, tf.Tensor]]:
        sums = []
        for values in zip(*slots, strict=True):
            with tf.device(values[0].device):
                sums.append(tf.add_n([value.read_value() for value in values]))
        norms = update.norms(self.state.parts[0], sums)
        return sums, norms, step_sums.judge(self.experiment, [norms], sums[-1], tf.constant(1.0))


def open_state(
    experiment: Experiment, layout: Layout, data: DataSet, source: Path | None
) -> tuple[State, State]:
    """Builds the state on parameter servers, and one like it in this process.

    Raises:
        UsageError: there are more servers than variables.
    """
    heartbeat.beat("building")
    greedy = GreedyPlacement(layout.parameter_servers)
    outputs = experiment.objective.num_outputs(data)
    placement = greedy.placement(len(experiment.model.blocks(outputs)))
    state = State.of(experiment, data, placement, source)
    if greedy.count < layout.parameter_servers:
        raise UsageError(
            f"{layout.parameter_servers} parameter servers need as many variables, but the model "
            f"has {greedy.count}: start at most {greedy.count} servers."
        )
    with tf.device(host_device()):
        return state, State.of(experiment, data)


def await_item(result: Any) -> None:
    """Waits until a worker has computed a work item.

    If the worker is lost, the coordinator gives the item to another; until then the result is an
    error, and is read again.
    """
    end = time.monotonic() + RETRY_SECONDS
    while True:
        try:
            result.get()
            return
        except tf.errors.UnavailableError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
