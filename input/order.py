"""Which examples make step s: a pure function of (seed, step).

Training reads an endless sequence of places; each epoch is one permutation of the N
examples. Step s owns places [s G, (s + 1) G); micro-batch i of it, numbered s V + i, owns
`micro_batch` of those. There is no shuffle buffer and no iterator to save: the step number
is the state of the data.

    N = 5, G = 4     place    0 1 2 3 4 | 5 6 7 8 9 | 10 ...
                     epoch    0 0 0 0 0 | 1 1 1 1 1 | 2
                     step     0 0 0 0 1   1 1 1 2 2   2
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np


@functools.lru_cache(maxsize=3)
def permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of one epoch, int64 [num_examples]."""
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    return np.random.Generator(bits).permutation(num_examples)


@dataclass(frozen=True)
class Order:
    """The endless sequence of examples, cut into numbered micro-batches."""

    seed: int
    num_examples: int
    micro_batch: int

    def places(self, number: int) -> np.ndarray:
        """Places of micro-batch `number`, int64 [micro_batch]."""
        return np.arange(number * self.micro_batch, (number + 1) * self.micro_batch)

    def examples(self, number: int) -> np.ndarray:
        """Ids, in [0, num_examples), of the examples at those places, int64 [micro_batch]."""
        epochs, offsets = np.divmod(self.places(number), self.num_examples)
        ids = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            order = permutation(self.seed, int(epoch), self.num_examples)
            ids[inside] = order[offsets[inside]]
        return ids
