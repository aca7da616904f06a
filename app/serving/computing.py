"""A batch is computed at once, or if that fails piece by piece: only the bad one is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from app.serving.errors import RequestError
from app.serving.pieces import Outputs, Piece, must_be_rows
from app.serving.signatures import Tensors

Run = Callable[[str, Tensors], Outputs]


def compute(run: Run, batch: Sequence[Piece]) -> list[Outputs | Exception]:
    """What comes of each piece; called in a worker's thread."""
    if len(batch) > 1:
        try:
            return list(_together(run, batch))
        except Exception:  # one of them is at fault: which, is seen when each runs alone
            return [_alone(run, piece) for piece in batch]
    return [_alone(run, batch[0])]


def _together(run: Run, batch: Sequence[Piece]) -> list[Outputs]:
    """Concatenates the pieces, and cuts what comes out."""
    names = batch[0].tensors
    tensors = {name: np.concatenate([p.tensors[name] for p in batch]) for name in names}
    outputs = run(batch[0].signature, tensors)
    ends = np.cumsum([piece.rows for piece in batch])
    must_be_rows(outputs, int(ends[-1]))
    starts = [0, *ends[:-1]]
    return [
        {name: y[start:end] for name, y in outputs.items()}
        for start, end in zip(starts, ends, strict=True)
    ]


def _alone(run: Run, piece: Piece) -> Outputs | Exception:
    """One piece; if it is refused, the first row that is refused by itself is named."""
    try:
        return run(piece.signature, piece.tensors)
    except RequestError as error:
        if error.status != 400 or piece.rows is None:
            return error
        return _named(run, piece) or error
    except Exception as error:
        return error


def _named(run: Run, piece: Piece) -> Exception | None:
    for i, place in enumerate(piece.places):
        try:
            run(piece.signature, {name: x[i : i + 1] for name, x in piece.tensors.items()})
        except RequestError as error:
            return error.at(place)
        except Exception as error:
            return error
    return None
