"""One training step with a parameter server: weights elsewhere, gradients from workers.

    synchronous (staleness 0)                 asynchronous, or bounded

    chief     |      sum, apply|              chief     apply 0   apply 1  apply 2
    worker 0  |share of step 0 |              worker 0  |step 0  |step 2      |
    worker 1  |share of step 0 |              worker 1  |step 1       |step 3     |

A worker reads the weights once, computes the sums of its micro-batches, and leaves them in a slot:
variables beside the weights, on the servers. The chief alone applies them, one slot at a time. So
a worker that dies loses work and no update, and a share that is computed again is left in the
slot again, not added: every step is applied exactly once. Weights are read while others are
written: of an asynchronous step some may be newer than others.
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
from app.parallel import topology
from app.parallel.ledger import Ledger
from app.parallel.parameter_server import Coordinator, Greedy, connected, server
from app.parallel.placement import here
from app.recovery import heartbeat
from app.training import update
from app.training.differentiation import Differentiation, MicroBatch
from app.training.exchange import nbytes
from app.training.state import State, beside
from app.training.step import Batches, Step
from input.batches import DataSet

RETRY_SECONDS = 60.0  # for a share to be given to a worker that lives
Share = tuple[list[tuple[tf.Tensor, tf.Tensor]], list[tf.Tensor]]  # (inputs, targets), numbers


class Slot:
    """What one worker computes, and where it leaves it.

    Attributes:
        sums: gradients, then statistics, then [loss, correct], beside the weights.
        is_free: the last sums that were left here are applied.
    """

    def __init__(self, step: ParameterServerStep) -> None:
        part = step.state.parts[0]
        variables = [*part.trainable, *(variable for variable, _ in part.statistics)]
        self.sums = [beside(v, tf.zeros(v.shape, v.dtype)) for v in variables]
        with tf.device(server(0)):
            self.sums.append(tf.Variable(tf.zeros([2]), trainable=False))
        self.step = step
        self.is_free = threading.Event()

    @tf.function(autograph=False, reduce_retracing=True)
    def compute(
        self, batches: list[tuple[tf.Tensor, tf.Tensor]], numbers: list[tf.Tensor]
    ) -> tf.Tensor:
        """On a worker: leaves the sums over these micro-batches."""
        weights = [tf.identity(v.read_value()) for v in self.step.state.parts[0].trainable]
        total: list[tf.Tensor] = []
        for (inputs, targets), number in zip(batches, numbers, strict=True):
            with tf.control_dependencies(total):  # one after the other: memory for one
                values = self.step.values(weights, inputs, targets, number)
            total = [a + b for a, b in zip(total, values, strict=True)] if total else values
        for variable, value in zip(self.sums, total, strict=True):
            variable.assign(value)
        return self.step.computed.assign_add(1)


class ParameterServerStep(Step):
    """Calling it applies one step's sums to the weights; returns that step's metrics.

    Args:
        experiment: whose `update.staleness` says how far workers may be apart.
        state: its variables are on the servers.
        coordinator: gives work to workers.
        workers: how many.
        order: the steps to apply.
        furthest: the last that is applied already.

    Attributes:
        ledger: which steps have begun and which are applied.
        given: shares of steps that were given out.
        computed: shares that were computed; more than were given, if workers died.
    """

    comes_in_bursts = True

    def __init__(
        self, experiment: Experiment, state: State, coordinator: Coordinator, workers: int,
        order: Sequence[int], furthest: int = -1,
    ) -> None:  # fmt: skip
        self.experiment, self.state, self.coordinator = experiment, state, coordinator
        bound = experiment.update.staleness
        self.ledger = Ledger(order, bound, furthest)
        self.model = Differentiation(experiment, state, 0)
        with tf.device(server(0)):
            self.computed = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.slots = [Slot(self) for _ in range(workers)]
        self._advance = self._together if bound == 0 else self._apart
        self._move = tf.function(update.move, autograph=False)
        self._batches: Batches = iter(())
        self._reading = threading.Lock()  # micro-batches go out in the order of steps
        self._ready: queue.Queue[tuple[int, Slot] | BaseException] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self.given = 0
        self.examples: dict[int, tf.Tensor] = {}
        self._examples: dict[int, dict[int, tf.Tensor]] = {}  # of each step that has begun

    def __call__(self, step: int, batches: Batches, rate: float) -> dict[str, tf.Tensor]:
        """Applies the next step's sums at learning rate `rate`; `step` are applied before it."""
        self._batches = batches
        return self._advance(tf.constant(rate, tf.float32))

    @property
    def bytes_sent(self) -> float:
        """To and from a worker in a step: all weights, and all sums."""
        part = self.state.parts[0]
        shares = len(self.slots) if self.experiment.update.staleness == 0 else 1
        both_ways = sum(map(nbytes, part.trainable)) + sum(map(nbytes, self.slots[0].sums))
        return shares * both_ways / len(self.slots)

    def missing(self) -> Sequence[int]:
        """See base class."""
        return self.ledger.missing()

    def results(self) -> dict[str, Any]:
        """Returns how stale updates were, and that none was lost or counted twice."""
        return {
            "staleness": {str(n): count for n, count in sorted(self.ledger.staleness.items())},
            "updates_applied": int(self.state.updates),
            "shares_computed": int(self.computed),
            "shares_given": self.given,
        }

    def close(self) -> None:
        """Lets no step begin any more."""
        self.ledger.close()
        for slot in self.slots:
            slot.is_free.set()

    @tf.function(autograph=False, reduce_retracing=True)
    def values(
        self, weights: list[tf.Tensor], inputs: Any, targets: tf.Tensor, number: tf.Tensor
    ) -> list[tf.Tensor]:
        """One micro-batch's part of a step, of these weights."""
        micro_batch = MicroBatch(number, targets, tf.constant(1.0))
        _, record = self.model.forward(inputs, micro_batch, weights)
        return [tf.convert_to_tensor(v) for v in self.model.backward(record, micro_batch)[1]]

    def _together(self, rate: tf.Tensor) -> dict[str, tf.Tensor]:
        """All workers compute a share of the next step."""
        step = self.ledger.begin()
        assert step is not None
        given = []
        for i, slot in enumerate(self.slots):
            places = topology.share(self.experiment.num_micro_batches, len(self.slots), i)
            share = self._share(step, places)
            given.append(self.coordinator.schedule(slot.compute, args=share))
        for result in given:
            await_share(result)
        return self._applied(step, [slot.sums for slot in self.slots], rate)

    def _apart(self, rate: tf.Tensor) -> dict[str, tf.Tensor]:
        """Whichever step is ready next."""
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._work, args=(slot,), daemon=True)
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

    def _work(self, slot: Slot) -> None:
        """Keeps one worker busy."""
        try:
            while (begun := self._begin()) is not None:
                step, share = begun
                slot.is_free.clear()
                await_share(self.coordinator.schedule(slot.compute, args=share))
                self._ready.put((step, slot))
                slot.is_free.wait()
        except BaseException as error:  # the caller's to raise
            self._ready.put(error)

    def _begin(self) -> tuple[int, Share] | None:
        with self._reading:
            step = self.ledger.begin()
            if step is None:
                return None
            return step, self._share(step, range(self.experiment.num_micro_batches))

    def _share(self, step: int, places: range) -> Share:
        """The next micro-batches, and their numbers."""
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
            scale, count = tf.constant(1.0), tf.cast(state.updates + 1, tf.float32)
            norm = metrics["gradient_norm"]
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
        norms, batch = update.norms(self.state.parts[0], sums), self.experiment.global_batch
        return sums, norms, update.judge([norms], sums[-1], tf.constant(1.0), batch)


def open_state(
    experiment: Experiment, layout: Layout, data: DataSet, source: Path | None
) -> tuple[State, State]:
    """Builds the state on parameter servers, and one like it in this process.

    Raises:
        UsageError: a server would hold nothing.
    """
    heartbeat.beat("building")
    greedy = Greedy(layout.parameter_servers)
    placement = greedy.placement(len(experiment.model.blocks(data.num_classes)))
    state = State(experiment, data.input_spec, data.num_classes, placement, source)
    if greedy.count < layout.parameter_servers:
        raise UsageError(
            f"{layout.parameter_servers} parameter servers need as many variables, but the model "
            f"has {greedy.count}: start at most {greedy.count} servers."
        )
    with tf.device(here()):
        return state, State(experiment, data.input_spec, data.num_classes)


def make_step(
    experiment: Experiment, layout: Layout, state: State, order: Sequence[int], furthest: int
) -> ParameterServerStep:
    """Makes the step of the cluster that this process is the chief of."""
    return ParameterServerStep(experiment, state, connected(), layout.workers, order, furthest)


def await_share(result: Any) -> None:
    """Waits until a worker has left a share.

    The coordinator gives it to another if the worker is lost; whoever looks in between finds
    the lost one's answer, and looks again.
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
