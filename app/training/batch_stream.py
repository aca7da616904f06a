"""Reads a process's micro-batches in the order of steps, and remembers and logs their examples."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import tensorflow as tf

from app.config import Experiment
from app.parallel.topology import Topology
from app.recovery import heartbeat
from input.batches import Batch, DataSet


def training_batches(
    experiment: Experiment, data: DataSet, topology: Topology, order: Sequence[int]
) -> Iterator[tuple[tf.Tensor, ...]]:
    """Yields this process's micro-batches of the steps of `order`."""
    total = experiment.num_micro_batches
    own = topology.micro_batches(total)
    for run in _without_gaps(order):

        def number(k: Any, first: int = run.start) -> Any:
            return (first + k // len(own)) * total + own.start + k % len(own)

        yield from data.train(experiment.seed, experiment.micro_batch, number, len(run) * len(own))


def _without_gaps(order: Sequence[int]) -> Iterator[range]:
    """Cuts ascending numbers into runs without gaps."""
    if isinstance(order, range):
        yield order
        return
    for _, run in itertools.groupby(enumerate(order), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        yield range(numbers[0], numbers[-1] + 1)


class BatchStream(Iterator[Batch]):
    """Passes micro-batches on, with a heartbeat for each.

    Args:
        batches: of this process, in order.
        micro_batches: this process's places in a step.
        order: the steps to which the batches belong, in order.
        log: where to write the ids of each micro-batch's examples, if anywhere.

    Attributes:
        ids: of the examples of the last step's micro-batches, by place in the step.
    """

    def __init__(
        self, batches: Iterable[Batch], micro_batches: range, order: Sequence[int],
        log: Path | None = None,
    ) -> None:  # fmt: skip
        self.batches, self.micro_batches = iter(batches), micro_batches
        self.ids: dict[int, tf.Tensor] = {}
        self._count, self._order = 0, order
        self._session = time.time_ns()
        self._log: IO[str] | None = None
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)  # may be on another machine than rank 0's
            self._log = log.open("a")

    def __next__(self) -> Batch:
        """Returns the next micro-batch; a rank that hangs in here is seen to be reading."""
        heartbeat.beat("reading")
        batch = next(self.batches)
        ahead, nth = divmod(self._count, len(self.micro_batches))
        is_last = nth == len(self.micro_batches) - 1
        heartbeat.beat(heartbeat.FINISHING if is_last else "computing")
        place, self._count = self.micro_batches[nth], self._count + 1
        self.ids[place] = batch[2]
        if self._log:
            line = {"step": self._order[ahead] + 1, "micro_batch": place}
            line |= {"examples": batch[2].numpy().tolist(), "session": self._session}
            self._log.write(json.dumps(line) + "\n")
            self._log.flush()
        return batch

    def close(self) -> None:
        """Ends the input pipeline, and closes the log.

        At the interpreter's exit its threads would wait for Python, and Python for them: a process
        was seen to leave 20 s after its last output.
        """
        self.batches = iter(())
        if self._log:
            self._log.close()
