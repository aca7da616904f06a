r"""Runs a pipeline: one thread per stage works through its schedule and passes messages on.

    stage 0  F0 F1 F2 .. B0 F3 B1 ...
               \  \      /
    stage 1     F0 F1 B0 F2 ...          messages: activations right, gradients left

A thread computes a task as soon as its input has arrived. What a task computes is up to the
caller: this file knows messages, threads and failure. If one thread fails, all stop and the
first error is raised.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from app.parallel.schedule import Task


class Work(Protocol):
    """The computation of a pipeline's tasks."""

    def forward(self, task: Task, x: Any) -> Any:
        """Computes a part's output from its input; x is None for the first part."""
        ...

    def backward(self, task: Task, gradient: Any) -> Any:
        """Computes the gradient of a part's input from that of its output, None for the last."""
        ...

    def finish(self, stage: int) -> Any:
        """Is called on the stage's thread after its last task, while other stages still work."""
        ...


@dataclass(frozen=True)
class Span:
    """The time in which a stage did a task, in seconds of one clock."""

    stage: int
    task: Task
    begin: float
    end: float


class StageStoppedError(Exception):
    """A stage stops because another one failed."""


class Mailbox:
    """Holds messages between stages, each to be taken once."""

    def __init__(self) -> None:
        self._messages: dict[Hashable, Any] = {}
        self._failed = False
        self._changed = threading.Condition()

    def give(self, key: Hashable, message: Any) -> None:
        """Leaves a message."""
        with self._changed:
            self._messages[key] = message
            self._changed.notify_all()

    def take(self, key: Hashable) -> Any:
        """Waits for a message.

        Raises:
            StageStoppedError: it will not come, as another stage failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: key in self._messages or self._failed)
            if self._failed:
                raise StageStoppedError
            return self._messages.pop(key)

    def fail(self) -> None:
        """Makes every stage that waits stop."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()


class Pipeline:
    """Runs a schedule on a thread per stage.

    Args:
        orders: the tasks of each stage (`schedule.orders`).
        num_parts: parts of the model; part p passes its output to part p + 1.
    """

    def __init__(self, orders: Sequence[Sequence[Task]], num_parts: int) -> None:
        self.orders, self.last = orders, num_parts - 1
        self._threads = ThreadPoolExecutor(len(orders), thread_name_prefix="stage")

    def __call__(self, work: Work, spans: list[Span] | None = None) -> list[Any]:
        """Runs every task once; returns what each stage's `finish` returned.

        Args:
            work: computes the tasks.
            spans: if given, gets the time of each task.
        """
        mailbox = Mailbox()
        futures = [
            self._threads.submit(self._stage, stage, work, mailbox, spans)
            for stage in range(len(self.orders))
        ]
        errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None and not isinstance(error, StageStoppedError):
                raise error
        return [future.result() for future in futures]

    def each(self, action: Callable[[int], Any]) -> list[Any]:
        """Runs an action for each stage on the stages' threads, all at once."""
        return list(self._threads.map(action, range(len(self.orders))))

    def _stage(self, stage: int, work: Work, mailbox: Mailbox, spans: list[Span] | None) -> Any:
        try:
            for task in self.orders[stage]:
                is_forward = task.kind == "F"
                first, last, to_next = (0, self.last, 1) if is_forward else (self.last, 0, -1)
                message = mailbox.take(task) if task.part != first else None
                begin = time.perf_counter()
                result = (work.forward if is_forward else work.backward)(task, message)
                if spans is not None:
                    spans.append(Span(stage, task, begin, time.perf_counter()))
                if task.part != last:
                    mailbox.give(Task(task.kind, task.part + to_next, task.micro_batch), result)
            return work.finish(stage)
        except BaseException:
            mailbox.fail()
            raise
