"""A process's micro-batches on their way into the step: watched, remembered, and written down."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import tensorflow as tf

from app.recovery import heartbeat
from input.batches import Batch


class Feed(Iterator[Batch]):
    """Passes micro-batches on.

    Args:
        batches: of this process, in order.
        micro_batches: this process's places in a step.
        order: the steps that they make, one after the other.
        log: where each one's examples are written, if anywhere.

    Attributes:
        ids: examples of the last step's micro-batches, by place in the step.
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
            log.parent.mkdir(parents=True, exist_ok=True)  # may be another machine than rank 0's
            self._log = log.open("a")

    def __next__(self) -> Batch:
        """The next one; a rank that hangs here is seen to be reading."""
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
        """Ends the pipeline, and the log.

        At the interpreter's end its threads would wait for Python, and Python for them: a process
        was seen to leave 20 s after its last word.
        """
        self.batches = iter(())
        if self._log:
            self._log.close()
