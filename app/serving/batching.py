"""Computes requests of many clients together: what waits, what is run next, and its answers.

A request is cut into pieces of at most a batch. Pieces that can be concatenated (one signature, one
inner shape) and are of like length wait in one group. A free worker takes the group whose oldest
piece has waited longest, once it fills a batch or that piece has waited long enough; while all
workers compute, pieces gather by themselves, so a busy server waits for nothing.

All but `_compute` runs in the event loop's thread, so nothing needs a lock.
"""

import asyncio
import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from app.serving import errors
from app.serving.codec import Inputs
from app.serving.errors import RequestError
from app.serving.model import Tensors

Run = Callable[[str, Tensors], Tensors]


@dataclass(eq=False)
class Piece:
    """Rows of one request that are computed in one batch.

    Attributes:
        signature: to compute.
        tensors: of these rows.
        rows: how many; None: not to be cut or joined with others.
        places: which instances of the request they are.
        size: bytes of the longest.
        since: when it began to wait.
        answer: the outputs of these rows.
    """

    signature: str
    tensors: Tensors
    rows: int | None
    places: Sequence[int]
    size: int = 0
    since: float = field(default_factory=time.monotonic)
    answer: asyncio.Future[Tensors] = field(default_factory=asyncio.Future)

    @property
    def weight(self) -> int:
        """Instances, as the queue counts them."""
        return self.rows or 1

    @functools.cached_property
    def group(self) -> Hashable:
        """Pieces of one group can be concatenated."""
        if self.rows is None:
            return id(self)
        shapes = tuple((name, x.shape[1:]) for name, x in self.tensors.items())
        return (self.signature, shapes, length_class(self.size))


class Batcher:
    """Runs requests in as few calls as the clients' patience allows.

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
        self.on_batch: Callable[[int], object] = lambda rows: None  # called with each batch's rows

    @property
    def is_full(self) -> bool:
        """Whether nothing more may wait."""
        return self.waiting >= self._limit

    def submit(self, inputs: Inputs) -> asyncio.Future[Tensors]:
        """Queues a request, and returns its outputs' future; cancel it to take the request out.

        Raises:
            RequestError: the queue is full.
        """
        count = inputs.rows or 1
        if count > self._limit:
            raise errors.TOO_MANY_INSTANCES(count=count, limit=self._limit)
        if self.waiting + count > self._limit:
            raise errors.QUEUE_FULL(waiting=self.waiting, limit=self._limit)
        pieces, answer = _cut(inputs, self._max_batch)
        for piece in pieces:
            self._groups.setdefault(piece.group, []).append(piece)
            self.waiting += piece.weight
            piece.answer.add_done_callback(functools.partial(self._drop, piece))
        self._start_batches()
        return answer

    def close(self) -> None:
        """Starts nothing more."""
        self._workers = 0
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _drop(self, piece: Piece, answer: asyncio.Future[Tensors]) -> None:
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

    def _start_batches(self) -> None:
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
                self._alarm = loop.call_later(first + self._wait - now, self._start_batches)
                return
            batch = self._take(min(due, key=lambda group: group[0].since))
            self.running += 1
            self.on_batch(sum(piece.weight for piece in batch))
            task = loop.run_in_executor(self._threads, _compute, self._run, batch)
            task.add_done_callback(functools.partial(self._answer, batch))

    def _is_due(self, group: Sequence[Piece], now: float) -> bool:
        """Whether there is nothing to wait for."""
        is_full = sum(piece.weight for piece in group) >= self._max_batch
        return is_full or group[0].rows is None or now >= group[0].since + self._wait

    def _take(self, group: list[Piece]) -> list[Piece]:
        """Takes the oldest pieces that fill a batch out of a group."""
        totals = itertools.accumulate(piece.weight for piece in group)
        batch = [p for p, total in zip(group, totals, strict=True) if total <= self._max_batch]
        self._remove(batch, group)
        return batch

    def _answer(
        self, batch: Sequence[Piece], done: asyncio.Future[list[Tensors | Exception]]
    ) -> None:
        """Gives a batch's clients their outputs or errors."""
        self.running -= 1
        if not done.cancelled():
            for piece, result in zip(batch, done.result(), strict=True):
                if piece.answer.done():  # its client hung up
                    continue
                if isinstance(result, Exception):
                    piece.answer.set_exception(result)
                else:
                    piece.answer.set_result(result)
        self._start_batches()


def length_class(size: int) -> int:
    """Returns which texts are computed together: the longest at most half as long again.

    A batch of texts is padded to its longest, and on a CPU what is padded costs like text: in all
    of a model, or in attention alone (models/packing.py). Below 64 bytes there is nothing to save.
    """
    return math.ceil(math.log(max(size, 64) / 64, 1.5))


def _cut(inputs: Inputs, max_batch: int) -> tuple[list[Piece], asyncio.Future[Tensors]]:
    """Cuts a request into pieces of at most `max_batch` rows; returns the whole answer's future.

    Texts of like length come into one piece, as a batch is padded to its longest.
    """
    rows, tensors = inputs.rows, inputs.tensors
    if rows is None or rows <= max_batch:
        longest = max(inputs.sizes or [0])
        piece = Piece(inputs.signature, tensors, rows, range(rows or 1), longest)
        return [piece], piece.answer
    sizes = np.array(inputs.sizes or [0] * rows)
    order = np.argsort(sizes, kind="stable")
    pieces = []
    for start in range(0, rows, max_batch):
        places = order[start : start + max_batch]
        part = {name: x[places] for name, x in tensors.items()}
        longest = int(sizes[places].max())
        pieces.append(Piece(inputs.signature, part, len(places), places.tolist(), longest))
    answer = asyncio.ensure_future(_join(pieces, order))
    # of a request that is cancelled, or has failed, the rest is of no use
    answer.add_done_callback(lambda _: [piece.answer.cancel() for piece in pieces])
    return pieces, answer


async def _join(pieces: Sequence[Piece], order: np.ndarray) -> Tensors:
    """Joins the outputs of a request's pieces, its rows as the client had them."""
    outputs = await asyncio.gather(*[piece.answer for piece in pieces])
    for y, piece in zip(outputs, pieces, strict=True):
        _must_have_rows(y, len(piece.places))
    back = np.argsort(order)
    return {name: np.concatenate([y[name] for y in outputs])[back] for name in outputs[0]}


def _must_have_rows(outputs: Tensors, rows: int) -> None:
    for name, y in outputs.items():
        if not y.ndim or len(y) != rows:
            raise errors.ROWS_DO_NOT_MATCH(name=name, rows=rows, shape=list(y.shape))


def _compute(run: Run, batch: Sequence[Piece]) -> list[Tensors | Exception]:
    """Computes a batch at once, or if that fails piece by piece; called in a worker's thread."""
    if len(batch) > 1:
        with contextlib.suppress(Exception):  # one piece is at fault: which, the next line finds
            return _compute_together(run, batch)
    return [_compute_piece(run, piece) for piece in batch]


def _compute_together(run: Run, batch: Sequence[Piece]) -> list[Tensors | Exception]:
    names = batch[0].tensors
    tensors = {name: np.concatenate([p.tensors[name] for p in batch]) for name in names}
    outputs = run(batch[0].signature, tensors)
    ends = np.cumsum([piece.rows for piece in batch])
    _must_have_rows(outputs, int(ends[-1]))
    starts = [0, *ends[:-1]]
    return [
        {name: y[start:end] for name, y in outputs.items()}
        for start, end in zip(starts, ends, strict=True)
    ]


def _compute_piece(run: Run, piece: Piece) -> Tensors | Exception:
    try:
        return run(piece.signature, piece.tensors)
    except RequestError as error:
        if error.status != 400 or piece.rows is None:
            return error
        return _first_error(run, piece) or error
    except Exception as error:
        return error


def _first_error(run: Run, piece: Piece) -> Exception | None:
    """Returns the error of the first row that is refused by itself."""
    try:
        for i, place in enumerate(piece.places):
            with errors.within("instance", place):
                run(piece.signature, {name: x[i : i + 1] for name, x in piece.tensors.items()})
    except Exception as error:
        return error
    return None
