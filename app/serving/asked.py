"""A request as tensors, and what is looked at before TensorFlow sees them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.serving.errors import WrongValueError
from app.serving.signatures import Signature, Tensors
from input.raw import FIELDS, Limits


@dataclass(frozen=True)
class Checks:
    """What a text or an image must be.

    Attributes:
        kind: `text`, `image`, or None: of any kind.
        limits: of an image or a text.
    """

    kind: str | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def name(self) -> str | None:
        """Of the input, or the feature, that is looked at."""
        return FIELDS[self.kind] if self.kind else None

    def look(self, name: str, value: bytes) -> None:
        """Looks at a text or an image; anything else is taken.

        Raises:
            WrongValueError: it cannot be taken.
        """
        if self.kind and name == self.name:
            try:
                self.limits.check(self.kind, value)
            except ValueError as error:
                raise WrongValueError(str(error)) from None


@dataclass(frozen=True)
class Asked:
    """A request as tensors.

    Attributes:
        tensors: by the names of the signature's inputs.
        rows: instances; None where they can be neither counted nor computed with others.
        is_row: it has `instances`, and is answered with `predictions`.
        sizes: bytes of each instance, if it is a text; a longer one takes longer.
    """

    tensors: Tensors
    rows: int | None
    is_row: bool = True
    sizes: Sequence[int] | None = None


def asked(tensors: Tensors, signature: Signature, checks: Checks, is_row: bool = True) -> Asked:
    """Counts and measures the instances."""
    counts = {value.shape[0] if value.ndim else 1 for value in tensors.values()}
    rows = counts.pop() if signature.is_batched and len(counts) == 1 else None
    sizes = None
    if rows is not None and checks.kind == "text":
        strings = [x.reshape(rows, -1) for x in tensors.values() if x.dtype == object]
        sizes = [sum(map(len, itertools.chain(*row))) for row in zip(*strings, strict=True)]
    return Asked(tensors, rows, is_row, sizes or None)
