"""Predicts items in batches, and writes each shard of the output when all its rows are known.

read, decode  -->  forward pass  -->  rows of a shard  -->  shard on the disk
some batches       one thread         gathered from
ahead              a lane             all threads
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from app.inference.forward import Forward, preprocessor
from app.inference.shards import Row, Shards
from app.objectives import Objective
from app.objectives.objective import rounded
from input import failures
from input.batches import DataSet
from input.items import Items
from input.raw import Limits

READ_AHEAD = 2  # batches for each lane


class Batch(NamedTuple):
    """Items of one shard that are computed together.

    Attributes:
        shard: the number of their shard.
        indices: of the items.
        inputs: of the items that can be read, padded to the size of all batches; None if there are
            none.
        errors: why an item cannot be read, by index.
        labels: of the items that have one, by index, as JSON values.
        lengths: tokens of the items that can be read, where inputs are rows of them.
    """

    shard: int
    indices: Sequence[int]
    inputs: Any
    errors: dict[int, str]
    labels: dict[int, Any]
    lengths: Sequence[int] | None = None


class Reader:
    """Reads items into batches that do not depend on who reads them.

    Args:
        items: what is read.
        data: turns an item into an input.
        shards: into which the items are divided.
        limits: of an item.
    """

    def __init__(self, items: Items, data: DataSet, shards: Shards, limits: Limits) -> None:
        self.items, self.data, self.shards, self.limits = items, data, shards, limits
        self.kind = data.kind
        if data.kind:
            self.preprocess = preprocessor(data, limits)

    def count(self, todo: Sequence[int]) -> int:
        """Returns the number of batches of these shards."""
        return sum(-(-len(self.shards.indices(shard)) // self.shards.batch) for shard in todo)

    def batches(self, todo: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Yields the shard and the items of each batch: in order, texts by length in their shard.

        A shard's items are read for their length when its first batch is taken.
        """
        for shard in todo:
            indices = list(self.shards.indices(shard))
            if self.kind == "text":
                indices.sort(key=lambda i: len(self._fetch(i)[0] or b""))
            for start in range(0, len(indices), self.shards.batch):
                yield shard, indices[start : start + self.shards.batch]

    def read(self, shard: int, indices: Sequence[int]) -> Batch:
        """Reads a batch; an item that cannot be read is left out, with its error."""
        raws, errors, labels = {}, {}, {}
        for i in indices:
            raw, label = self._fetch(i)
            if raw is None:
                errors[i] = str(label)
                continue
            raws[i] = raw
            if label is not None:
                labels[i] = self.shown(label)
        try:
            inputs = self._decode(list(raws.values()))
        except tf.errors.OpError:  # of one of them
            for i in list(raws):
                try:
                    self.preprocess(tf.constant([raws[i]]))
                except tf.errors.OpError as error:
                    errors[i] = f"it cannot be decoded: {failures.sentence(error)}"
                    del raws[i]
            inputs = self._decode(list(raws.values()))
        lengths = None
        if inputs is not None and self.kind == "text":
            lengths = tf.reduce_sum(tf.cast(inputs != 0, tf.int32), -1).numpy()
        return Batch(shard, indices, inputs, errors, labels, lengths)

    def shown(self, label: Any) -> Any:
        """Returns a label as a JSON value: a class by its name."""
        label = np.asarray(label)
        is_class = label.ndim == 0 and np.issubdtype(label.dtype, np.integer) and self.data.classes
        return self.data.classes[int(label)] if is_class else rounded(label)

    def _decode(self, raws: list[bytes]) -> tf.Tensor | None:
        if not raws:
            return None
        x = self.preprocess(tf.constant(raws))
        padding = [[0, self.shards.batch - len(raws)]] + [[0, 0]] * (len(x.shape) - 1)
        return tf.pad(x, padding)

    def _fetch(self, i: int) -> tuple[bytes | None, Any]:
        """Returns an item and its label, or None and what is wrong with it."""
        try:
            raw, label = self.items.fetch(i)
            self.limits.check(self.kind, raw)
        except OSError as error:
            return None, f"it cannot be read: {failures.sentence(error)}"
        except (ValueError, tf.errors.OpError) as error:
            return None, failures.sentence(error)
        return raw, label


class TensorReader(Reader):
    """Reads examples of a data set whose clients send tensors.

    Args:
        items, data, shards, limits: as of `Reader`.
        are_classes: whether targets are distributions over the classes, [b, K]: a label is the
            likeliest.
    """

    def __init__(
        self, items: Items, data: DataSet, shards: Shards, limits: Limits, are_classes: bool
    ) -> None:
        super().__init__(items, data, shards, limits)
        self.are_classes = are_classes

    def read(self, shard: int, indices: Sequence[int]) -> Batch:
        """See base class; a damaged example ends the job, as it would end an evaluation."""
        run = range(indices[0], indices[-1] + 1)
        ((inputs, targets, _),) = self.data.evaluation(self.shards.batch, run)
        labels: dict[int, Any] = {}
        if not tf.nest.is_nested(targets):
            rows = targets.numpy()
            rows = rows.argmax(-1) if self.are_classes else rows
            labels = {i: self.shown(row) for i, row in zip(indices, rows, strict=False)}
        return Batch(shard, indices, inputs, {}, labels)


class Predictor:
    """Turns the items of shards into rows.

    Args:
        reader: of the items.
        objective: says what is written.
        classes: their names.
        top: classes written for an item.
        bar: shows progress, a step a shard.
    """

    def __init__(
        self, reader: Reader, objective: Objective, classes: Sequence[str], top: int, bar: Any
    ) -> None:
        self.reader, self.shards = reader, reader.shards
        self.objective, self.classes, self.top, self.bar = objective, classes, top, bar
        self._rows: dict[int, dict[int, Row]] = {}  # of the shards that are not complete
        self._lock = threading.Lock()

    def run(self, forward: Forward, todo: Sequence[int]) -> None:
        """Predicts and writes these shards."""
        batches = self.reader.batches(todo)
        count, num_begun = self.reader.count(todo), 0
        reads: dict[int, Future[Batch]] = {}
        computing: dict[int, Batch] = {}
        lock = threading.Lock()
        with ThreadPoolExecutor(forward.lanes, thread_name_prefix="read") as pool:

            def read_ahead(end: int) -> None:
                """Begins to read all batches before number `end`."""
                nonlocal num_begun
                with lock:
                    for m in range(num_begun, min(end, count)):
                        reads[m] = pool.submit(self.reader.read, *next(batches))
                        num_begun = m + 1

            def read(m: int) -> tf.Tensor | None:
                read_ahead(m + 1 + READ_AHEAD * forward.lanes)
                computing[m] = reads.pop(m).result()
                return computing[m].inputs

            forward(count, read, lambda m, y: self.collect(computing.pop(m), y))

    def collect(self, batch: Batch, scores: Any) -> None:
        """Keeps the rows of a batch, and writes its shard if they were missing; thread-safe.

        Args:
            batch: that was computed.
            scores: [B, ...], of the items that could be read and of padding; None if none was.
        """
        readable = [i for i in batch.indices if i not in batch.errors]
        rows = {i: self._row(i, batch, None) for i in batch.errors}
        for place, i in enumerate(readable):
            end = None
            if self.objective.is_of_tokens and batch.lengths is not None:
                end = int(batch.lengths[place])
            each = tf.nest.map_structure(lambda y, p=place, e=end: y[p][:e] if e else y[p], scores)
            rows[i] = self._row(i, batch, each)
        with self._lock:
            collected = self._rows.setdefault(batch.shard, {})
            collected.update(rows)
            is_complete = len(collected) == len(self.shards.indices(batch.shard))
            if is_complete:
                del self._rows[batch.shard]
        if is_complete:
            self.shards.write(batch.shard, [collected[i] for i in sorted(collected)])
            self.bar.update()

    def _row(self, i: int, batch: Batch, y: Any) -> Row:
        row: dict[str, Any] = {"index": i, "item": self.reader.items.name(i)}
        label = batch.labels.get(i)
        if label is not None:
            row["label"] = label
        if y is None:
            return {**row, "error": batch.errors[i]}
        found = self.objective.row(y, self.classes, self.top)
        return row | (self.objective.cells(found) if self.shards.is_csv else found)
