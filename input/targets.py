"""Says what targets mean by their type, and checks them example by example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from input import labels, nests
from input.nests import Spec

Meaning = Literal["class", "tokens", "labels", "numbers"]


@dataclass(frozen=True)
class Targets:
    """The targets of a data set.

    Attributes:
        specs: of one example's, a nest of `Spec`.
        classes: names, if they are classes.
    """

    specs: Any
    classes: tuple[str, ...]

    @property
    def meaning(self) -> Meaning:
        """What they are; see `input.source.Source`."""
        if not isinstance(self.specs, Spec):
            return "numbers"
        if np.dtype(self.specs.dtype).kind in "iu":
            return "tokens" if self.specs.shape else "class"
        return "labels" if self.classes else "numbers"

    def require(self, owner: str) -> None:
        """Checks that classes and shape agree.

        Raises:
            ValueError: they do not; names the owner, the data set.
        """
        if self.meaning == "class" and len(self.classes) < 2:
            raise ValueError(
                f"the targets of {owner} are whole numbers, which are classes, but `classes` has "
                f"{len(self.classes)} names: name 2 or more, or give numbers to predict as floats"
            )
        if self.meaning == "labels" and self.specs.shape != (len(self.classes),):
            raise ValueError(
                f"the targets of {owner} have the shape {list(self.specs.shape)}, but `classes` "
                f"has {len(self.classes)} names: give one number for each"
            )

    def check(self, leaves: Sequence[np.ndarray]) -> None:
        """Checks the targets of one example, as `nests.fit` returns them.

        Raises:
            ValueError: says what is wrong with them, without a full stop.
        """
        for (path, _), array in zip(nests.flatten(self.specs), leaves, strict=True):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                kind = "NaN" if np.isnan(array).any() else "infinite"
                raise ValueError(f"the targets{path} are {kind}: leave the example out, or fill in")
        if self.meaning == "class":
            labels.check_label(int(leaves[0]), len(self.classes))
        elif self.meaning == "tokens" and self.classes and leaves[0].size:
            low, high = int(leaves[0].min()), int(leaves[0].max())
            if low < -1 or high >= len(self.classes):
                raise ValueError(
                    f"the targets are classes from {low} to {high}, but there are "
                    f"{len(self.classes)} (0 to {len(self.classes) - 1}; -1: not counted)"
                )
        elif self.meaning == "labels" and not ((leaves[0] >= 0) & (leaves[0] <= 1)).all():
            raise ValueError(f"the targets {leaves[0].tolist()} must be from 0 to 1 for each class")
