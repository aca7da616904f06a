"""Answers to rows: gathered from all threads, kept shard by shard."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from app.inference.forward import Forward
from app.inference.reading import Batch, Reader
from app.inference.shards import Row, Shards

AHEAD = 2  # batches read for each lane while it computes


class Answers:
    """Gathers what is known of items, and keeps each shard when all of it is.

    Args:
        shards: where rows are kept.
        reader: of the items.
        classes: names.
        top: classes told of an item.
        bar: of progress, by shards.
    """

    def __init__(
        self, shards: Shards, reader: Reader, classes: Sequence[str], top: int, bar: Any
    ) -> None:
        self.shards, self.reader, self.classes, self.top = shards, reader, classes, top
        self.bar = bar
        self._rows: dict[int, dict[int, Row]] = {}
        self._lock = threading.Lock()

    def run(self, forward: Forward, mine: Sequence[int], lanes: int) -> None:
        """Computes this rank's shards."""
        batches = self.reader.batches(self.shards, mine)
        count, begun = self.reader.count(self.shards, mine), 0
        ahead: dict[int, tuple[int, Future[Batch]]] = {}
        taken: dict[int, tuple[int, Batch]] = {}
        begins = threading.Lock()
        with ThreadPoolExecutor(lanes, thread_name_prefix="read") as pool:

            def begin(end: int) -> None:
                """Has all batches before `end` read, or on their way."""
                nonlocal begun
                with begins:
                    for m in range(begun, min(end, count)):
                        shard, places = next(batches)
                        ahead[m] = shard, pool.submit(self.reader.read, places)
                        begun = m + 1

            def read(m: int) -> tf.Tensor | None:
                begin(m + 1 + AHEAD * lanes)
                shard, batch = ahead.pop(m)
                taken[m] = shard, batch.result()
                return taken[m][1].inputs

            forward(count, read, lambda m, y: self.note(*taken.pop(m), y))

    def note(self, shard: int, batch: Batch, probabilities: np.ndarray | None) -> None:
        """Takes a batch's answers; from several threads."""
        answers = iter(probabilities if probabilities is not None else ())
        rows = {}
        for i in batch.places:
            y = None if i in batch.errors else next(answers)
            rows[i] = self._row(i, batch, y)
        with self._lock:
            held = self._rows.setdefault(shard, {})
            held.update(rows)
            is_whole = len(held) == len(self.shards.places(shard))
            if is_whole:
                del self._rows[shard]
        if is_whole:
            self.shards.write(shard, [held[i] for i in sorted(held)])
            self.bar.update()

    def _row(self, i: int, batch: Batch, y: np.ndarray | None) -> Row:
        row: dict[str, Any] = {"index": i, "item": self.reader.items.name(i)}
        label = batch.labels.get(i)
        if label is not None:
            row["label"] = self.classes[label]
        if y is None:
            return {**row, "error": batch.errors[i]}
        best = np.argsort(-y, kind="stable")[: self.top]  # of equals, the first class
        named = {self.classes[k]: float(str(y[k])) for k in best}
        if self.shards.output.suffix == ".csv":
            for k, (name, value) in enumerate(named.items(), 1):
                row |= {f"class_{k}": name, f"probability_{k}": value}
            return row
        return {**row, "class": next(iter(named)), "probabilities": named}
