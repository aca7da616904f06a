"""Orders examples: which examples make step s is a pure function of (seed, step).

Training reads an endless sequence of places; each epoch is one permutation of the N
examples. Step s owns places [s G, (s + 1) G); micro-batch i of it, numbered s V + i, owns
`micro_batch` of those. There is no shuffle buffer and no iterator to save: the step number
is the state of the data.

    N = 5, G = 4     place    0 1 2 3 4 | 5 6 7 8 9 | 10 ...
                     epoch    0 0 0 0 0 | 1 1 1 1 1 | 2
                     step     0 0 0 0 1   1 1 1 2 2   2

Examples can be grouped by length, so that there is little padding: within a window of
WINDOW micro-batches they are sorted by length, cut into micro-batches, and these shuffled.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np

WINDOW = 32  # micro-batches sorted together: enough to group, too few for a curriculum


def generator(*key: int) -> np.random.Generator:
    """Returns a generator of random numbers that are a function of the key."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def split_of(text: str) -> str:
    """Returns a text's split by its digest: a tenth is `test`, a tenth `validation`."""
    tenth = int.from_bytes(hashlib.sha256(text.strip().encode()).digest()[:4], "big") % 10
    return {0: "test", 1: "validation"}.get(tenth, "train")


def grouped(
    order: np.ndarray,
    lengths: np.ndarray,
    micro_batch: int,
    skip: int,
    shuffle: np.random.Generator,
) -> np.ndarray:
    """Reorders an epoch so that examples of similar length are in one micro-batch.

    Args:
        order: ids, [N].
        lengths: of each example, by id, [N].
        micro_batch: examples in each.
        skip: examples at the front that complete the previous epoch's last micro-batch.
        shuffle: draws the order of a window's micro-batches.

    Returns:
        ids, [N].
    """
    pieces = [order[:skip]]
    for start in range(skip, len(order), WINDOW * micro_batch):
        window = order[start : start + WINDOW * micro_batch]
        window = window[np.argsort(lengths[window], kind="stable")]
        whole = len(window) // micro_batch
        groups = window[: whole * micro_batch].reshape(whole, micro_batch)
        pieces += [groups[shuffle.permutation(whole)].ravel(), window[whole * micro_batch :]]
    return np.concatenate(pieces)


class Order:
    """The endless sequence of examples, cut into numbered micro-batches.

    Args:
        seed: the experiment's.
        num_examples: N.
        micro_batch: examples in each.
        lengths: of each example, to group by; None: examples are not grouped.
    """

    def __init__(
        self, seed: int, num_examples: int, micro_batch: int, lengths: np.ndarray | None = None
    ) -> None:
        self.seed, self.num_examples, self.micro_batch = seed, num_examples, micro_batch
        self.lengths = lengths
        self._epoch = functools.lru_cache(3)(self.epoch)  # readers are a few micro-batches apart

    def places(self, number: int) -> np.ndarray:
        """Returns the places of micro-batch `number`, int64 [micro_batch]."""
        return np.arange(number * self.micro_batch, (number + 1) * self.micro_batch)

    def examples(self, number: int) -> np.ndarray:
        """Returns the ids of micro-batch `number`, in [0, num_examples), int64 [micro_batch]."""
        epochs, offsets = np.divmod(self.places(number), self.num_examples)
        ids = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            ids[inside] = self._epoch(int(epoch))[offsets[inside]]
        return ids

    def epoch(self, epoch: int) -> np.ndarray:
        """Returns the ids of one epoch in order, int64 [num_examples]."""
        order = generator(self.seed, epoch).permutation(self.num_examples)
        if self.lengths is not None:
            skip = -epoch * self.num_examples % self.micro_batch
            shuffle = generator(self.seed, epoch, 1)
            return grouped(order, self.lengths, self.micro_batch, skip, shuffle)
        return order
