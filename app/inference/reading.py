"""Items to inputs: in batches that do not depend on who reads them, some ahead of who computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import tensorflow as tf

from app.inference.shards import Shards
from input import failures
from input.batches import DataSet
from input.items import Items
from input.raw import Limits


class Batch(NamedTuple):
    """Some items: inputs of those that can be read, padded to the size of all batches, or None."""

    places: Sequence[int]
    inputs: tf.Tensor | None
    errors: dict[int, str]
    labels: dict[int, int]


class Reader:
    """Reads batches.

    Args:
        items: what is read.
        data: says how an item becomes an input.
        size: items of a batch.
        limits: of an item.
    """

    def __init__(self, items: Items, data: DataSet, size: int, limits: Limits) -> None:
        self.items, self.kind, self.size, self.limits = items, data.kind, size, limits
        strings = [tf.TensorSpec([None], tf.string)]
        self.preprocess = tf.function(
            lambda raw: data.preprocess(raw, limits), input_signature=strings
        )
        self.preprocess.get_concrete_function()  # traced now, not while it is timed

    def count(self, shards: Shards, mine: Sequence[int]) -> int:
        """Batches of these shards."""
        return sum(-(-len(shards.places(shard)) // self.size) for shard in mine)

    def batches(self, shards: Shards, mine: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """(shard, items) of each batch: in order, or of like length within a shard.

        A shard's items are looked at when its first batch is taken.
        """
        for shard in mine:
            places = list(shards.places(shard))
            if self.kind == "text":
                places.sort(key=lambda i: len(self._raw(i)[0] or b""))
            for start in range(0, len(places), self.size):
                yield shard, places[start : start + self.size]

    def read(self, places: Sequence[int]) -> Batch:
        """A batch; what cannot be read is named, and left out."""
        raws, errors, labels = {}, {}, {}
        for i in places:
            raw, found = self._raw(i)
            if raw is None:
                errors[i] = str(found)
                continue
            raws[i] = raw
            if found is not None:
                labels[i] = int(found)
        try:
            return self._batch(places, raws, errors, labels)
        except tf.errors.OpError:  # one of them: which?
            for i in list(raws):
                try:
                    self.preprocess(tf.constant([raws[i]]))
                except tf.errors.OpError as error:
                    errors[i] = f"it cannot be decoded: {failures.sentence(error)}"
                    del raws[i]
        return self._batch(places, raws, errors, labels)

    def _batch(
        self, places: Sequence[int], raws: dict[int, bytes], errors: dict[int, str],
        labels: dict[int, int],
    ) -> Batch:  # fmt: skip
        if not raws:
            return Batch(places, None, errors, labels)
        x = self.preprocess(tf.constant(list(raws.values())))
        padding = [[0, self.size - len(raws)]] + [[0, 0]] * (len(x.shape) - 1)
        return Batch(places, tf.pad(x, padding), errors, labels)

    def _raw(self, i: int) -> tuple[bytes | None, int | str | None]:
        """An item and its label, or None and what is wrong with it."""
        try:
            raw, label = self.items.fetch(i)
            self.limits.check(self.kind, raw)
        except OSError as error:
            return None, f"it cannot be read: {failures.sentence(error)}"
        except (ValueError, tf.errors.OpError) as error:
            return None, failures.sentence(error)
        return raw, label
