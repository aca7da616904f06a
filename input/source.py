"""Defines a split of a data set that is read by index: the base of built-in and of own data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from input import nests
from input.nests import Spec

ENCODED = Spec((), "string")
CLASS = Spec((), "int64")

Ids = Sequence[int] | np.ndarray


class Source:
    """One split of a data set, read by index. Give `__len__` and `fetch`; the rest has defaults.

    Inputs and targets of an example are an array, or dictionaries and tuples of arrays. What the
    targets mean follows from their type:

        a whole number              the example's class, which is a place in `classes`
        whole numbers [T]           classes of tokens, -1: not counted
        numbers, with `classes`     for each class, whether it holds: 0 to 1
        numbers, without            what a regression predicts

    Attributes:
        classes: names of the classes; none for a regression.
        specs: (inputs, targets), nests of `Spec`; None: as example 0 has them. Dimensions of None
            are padded to a micro-batch's longest, rounded up to a multiple of 8.
        lengths: of the examples, int64 [N], to group those of similar length; None: not grouped.
    """

    classes: tuple[str, ...] = ()
    specs: tuple[Any, Any] | None = None
    lengths: np.ndarray | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def fetch(self, ids: Ids) -> tuple[Sequence[Any], Sequence[Any]]:
        """Reads examples; returns their inputs and their targets, as many as ids.

        In training, ids are an array, int64 [b].

        Raises:
            ValueError, OSError: says what is wrong with one of them, without a full stop.
        """
        raise NotImplementedError

    def example(
        self, inputs: Any, targets: Any, random: np.random.Generator | None
    ) -> tuple[Any, Any]:
        """Decodes or augments what was fetched of one example; by default it stays.

        Args:
            inputs: what was fetched.
            targets: likewise.
            random: draws what augmentation needs, a function of the seed and of the example's place
                in the training sequence; None in evaluation.
        """
        return inputs, targets

    def collate(
        self, examples: Sequence[Sequence[np.ndarray]], specs: tuple[Any, Any]
    ) -> list[np.ndarray]:
        """Makes a micro-batch of examples; by default stacks them, padded where a spec has None.

        Args:
            examples: of each the arrays of inputs and targets, in the order of `tf.nest.flatten`.
            specs: of inputs and targets.

        Returns:
            The same arrays of the micro-batch, [b, ...].
        """
        return nests.stack(examples, specs)

    def name(self, example: int) -> str:
        """Returns where an example is, for messages."""
        return f"example {example} of {type(self).__name__}"


class Encoded(Source):
    """A split of encoded images, or of texts in UTF-8, with the class of each."""

    specs: tuple[Any, Any] = (ENCODED, CLASS)
