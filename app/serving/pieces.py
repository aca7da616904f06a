"""Requests cut into pieces of at most a batch, and their answers put together again."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from app.serving.asked import Asked
from app.serving.errors import RequestError
from app.serving.signatures import Tensors

Outputs = dict[str, np.ndarray]


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
        answer: of the client.
    """

    signature: str
    tensors: Tensors
    rows: int | None
    places: Sequence[int]
    size: int = 0
    since: float = field(default_factory=time.monotonic)
    answer: asyncio.Future[Outputs] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

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


def length_class(size: int) -> int:
    """Which texts are computed together: the longest is at most half as long again as the others.

    A batch of texts is padded to its longest, and on a CPU what is padded costs like text: in all
    of a model, or in attention alone (models/packing.py). Below 64 bytes there is nothing to save.
    """
    return math.ceil(math.log(max(size, 64) / 64, 1.5))


def cut(
    signature: str, asked: Asked, max_batch: int
) -> tuple[list[Piece], asyncio.Future[Outputs]]:
    """A request as pieces of at most `max_batch` rows, and the future of its whole answer.

    Texts of like length come into one piece, as a batch is padded to its longest.
    """
    rows, tensors = asked.rows, asked.tensors
    if rows is None or rows <= max_batch:
        piece = Piece(signature, tensors, rows, range(rows or 1), max(asked.sizes or [0]))
        return [piece], piece.answer
    sizes = np.array(asked.sizes or [0] * rows)
    order = np.argsort(sizes, kind="stable")
    pieces = []
    for start in range(0, rows, max_batch):
        places = order[start : start + max_batch]
        part = {name: x[places] for name, x in tensors.items()}
        longest = int(sizes[places].max())
        pieces.append(Piece(signature, part, len(places), places.tolist(), longest))
    answer = asyncio.ensure_future(_joined(pieces, order))
    # of a request that is cancelled, or has failed, the rest is of no use
    answer.add_done_callback(lambda _: [piece.answer.cancel() for piece in pieces])
    return pieces, answer


async def _joined(pieces: Sequence[Piece], order: np.ndarray) -> Outputs:
    """The answers to the pieces of a request, its rows as the client had them."""
    outputs = await asyncio.gather(*[piece.answer for piece in pieces])
    for y, piece in zip(outputs, pieces, strict=True):
        must_be_rows(y, len(piece.places))
    back = np.argsort(order)
    return {name: np.concatenate([y[name] for y in outputs])[back] for name in outputs[0]}


def must_be_rows(outputs: Outputs, rows: int) -> None:
    """Checks that there is a row an instance.

    Raises:
        RequestError: there is not.
    """
    for name, y in outputs.items():
        if not y.ndim or len(y) != rows:
            raise RequestError(
                400, f'output "{name}" of {rows} instances has the shape {list(y.shape)}: this '
                'signature has no row an instance, so send "inputs".',
            )  # fmt: skip
