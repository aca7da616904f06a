"""Requests of many clients computed together: what waits, and what is run next.

Everything here runs in the event loop's thread, so nothing needs a lock. Pieces that can be
concatenated (one signature, one inner shape) and are of like length wait in one group. A free
worker takes the group whose oldest piece has waited longest, once it fills a batch or that piece
has waited long enough; while all workers compute, pieces gather by themselves, so a busy server
waits for nothing.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor

from app.serving.asked import Asked
from app.serving.computing import Run, compute
from app.serving.errors import RequestError
from app.serving.pieces import Outputs, Piece, cut


class Batcher:
    """Runs what it is asked to in as few calls as the clients' patience allows.

    Args:
        run: computes a signature; called from `workers` threads.
        workers: calls at once.
        max_batch: rows of a call.
        wait: seconds that a piece waits for others while a worker is free.
        limit: instances that may wait.
    """

    def __init__(self, run: Run, workers: int, max_batch: int, wait: float, limit: int) -> None:
        self._run, self._workers, self._max_batch = run, workers, max_batch
        self._wait, self._limit = wait, limit
        self._threads = ThreadPoolExecutor(workers, "tensorflow")
        self._groups: dict[Hashable, list[Piece]] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self.waiting = 0  # instances
        self.running = 0  # batches
        self.seen: Callable[[int], object] = lambda rows: None  # told the rows of every batch

    @property
    def is_full(self) -> bool:
        """Whether nothing more may wait."""
        return self.waiting >= self._limit

    def submit(self, signature: str, asked: Asked) -> asyncio.Future[Outputs]:
        """Queues a request; to cancel the future is to take it out again.

        Raises:
            RequestError: the queue is full.
        """
        count = asked.rows or 1
        if count > self._limit:
            raise RequestError(
                400, f"the request holds {count} instances, and no more than {self._limit} may wait"
                ": send fewer at once.",
            )  # fmt: skip
        if self.waiting + count > self._limit:
            raise RequestError(
                429, f"{self.waiting} instances wait, and no more than {self._limit} may: try "
                "again in a second.", {"Retry-After": "1"},
            )  # fmt: skip
        pieces, answer = cut(signature, asked, self._max_batch)
        for piece in pieces:
            self._groups.setdefault(piece.group, []).append(piece)
            self.waiting += piece.weight
            piece.answer.add_done_callback(functools.partial(self._drop, piece))
        self._pump()
        return answer

    def close(self) -> None:
        """Starts nothing more."""
        self._workers = 0
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _drop(self, piece: Piece, answer: asyncio.Future[Outputs]) -> None:
        """Takes a piece that nobody waits for any more out of the queue."""
        group = self._groups.get(piece.group, [])
        if answer.cancelled() and piece in group:
            self._remove([piece], group)

    def _remove(self, pieces: Sequence[Piece], group: list[Piece]) -> None:
        for piece in pieces:
            group.remove(piece)
            self.waiting -= piece.weight
        if not group:
            del self._groups[pieces[0].group]

    def _pump(self) -> None:
        """Gives free workers what is due, and sets the clock for what is not yet."""
        if self._alarm:
            self._alarm.cancel()
            self._alarm = None
        loop = asyncio.get_running_loop()
        while self.running < self._workers and self._groups:
            now = time.monotonic()
            due = [group for group in self._groups.values() if self._is_due(group, now)]
            if not due:
                first = min(group[0].since for group in self._groups.values())
                self._alarm = loop.call_later(first + self._wait - now, self._pump)
                return
            batch = self._take(min(due, key=lambda group: group[0].since))
            self.running += 1
            self.seen(sum(piece.weight for piece in batch))
            task = loop.run_in_executor(self._threads, compute, self._run, batch)
            task.add_done_callback(functools.partial(self._finish, batch))

    def _is_due(self, group: Sequence[Piece], now: float) -> bool:
        """Whether there is nothing to wait for."""
        is_full = sum(piece.weight for piece in group) >= self._max_batch
        return is_full or group[0].rows is None or now >= group[0].since + self._wait

    def _take(self, group: list[Piece]) -> list[Piece]:
        """The oldest pieces that fill a batch."""
        batch: list[Piece] = []
        room = self._max_batch
        for piece in group:
            if batch and piece.weight > room:
                break
            batch.append(piece)
            room -= piece.weight
        self._remove(batch, group)
        return batch

    def _finish(
        self, batch: Sequence[Piece], done: asyncio.Future[list[Outputs | Exception]]
    ) -> None:
        """Answers a batch's clients."""
        self.running -= 1
        if not done.cancelled():
            for piece, result in zip(batch, done.result(), strict=True):
                if piece.answer.done():  # its client hung up
                    continue
                if isinstance(result, Exception):
                    piece.answer.set_exception(result)
                else:
                    piece.answer.set_result(result)
        self._pump()
