"""`app predict`: batch prediction over the ranks of a job, and over stages.

    shard   0 | 1 | 2 | 3 | 4 ...      of the items in order, whoever does them
    rank    0   1   2   0   1

A batch has the same items on any number of ranks, and always as many: no number depends on the
layout. An item that cannot be read gets its error in its place.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from app.config import Experiment, Layout
from app.errors import UsageError
from app.inference import standard
from app.inference.forward import Forward
from app.inference.shards import Row, Shards
from app.parallel import replicas
from app.parallel.topology import Topology
from app.reporting.report import terminal
from app.training import opening, trained
from app.training.trained import Trained
from input import items as inputs
from input.batches import DataSet
from input.items import Items
from input.raw import Limits

AHEAD = 2  # batches read for each lane while it computes
SPLIT = "split:"


@dataclasses.dataclass(frozen=True)
class Job:
    """What is predicted, and what is told.

    Attributes:
        source: a folder, a file or split:<name>.
        output: .jsonl or .csv.
        form, field: of a file (`input/items.py`).
        top: classes told of an item.
        weights: best, trained or average.
        batch: items at once.
        threads: cores of this process.
        limits: of an item.
    """

    source: str
    output: Path
    form: str | None
    field: str | None
    top: int
    weights: str
    batch: int
    threads: int
    limits: Limits

    @property
    def is_standard(self) -> bool:
        """Whether the output goes on to standard output."""
        return self.output.name == standard.OUTPUT


class Batch(NamedTuple):
    """Some items: inputs of those that can be read, padded to the size of all batches, or None."""

    places: Sequence[int]
    inputs: tf.Tensor | None
    errors: dict[int, str]
    labels: dict[int, int]


def main(
    experiment: Experiment, layout: Layout, where: Topology, folder: Path, data_dir: str, job: Job
) -> None:
    """Predicts every item once, and writes the output in their order.

    Raises:
        UserError: the same on every rank.
    """
    run = trained.restore(experiment, layout, where, folder, data_dir)
    data = run.opened.data
    items = opening.together(lambda: open_items(job, experiment, data, data_dir))
    top = min(job.top, data.num_classes)
    columns = ["index", "item", "label", "error"]
    columns += [f"{name}_{k}" for k in range(1, top + 1) for name in ("class", "probability")]
    shards = Shards(job.output, len(items), job.batch, columns)
    with run.weights(job.weights) as weights:
        lanes = max(1, job.threads // layout.stages)
        forward = Forward(run.opened.state, data.input_spec, lanes)
        reader = Reader(items, data, job)
        opening.together(
            lambda: claim(shards, job, run, items, weights) if where.is_chief else None
        )
        # As rank 0 finds them: others may look when the first is done already.
        todo = json.loads(replicas.broadcast_text(json.dumps(shards.todo())))
        mine = todo[where.rank :: where.size]
        begin = time.monotonic()
        with progress(where, len(mine)) as bar:
            told = Told(shards, reader, data.classes, top, bar)
            opening.together(lambda: told.run(forward, mine, lanes))
    counts = replicas.add_up(np.array(told.counts, np.float64), "predicted")
    opening.together(lambda: shards.join() if where.is_chief else None)
    if where.is_chief:
        kept = shards.count - len(todo)
        line = closing(counts, time.monotonic() - begin, kept)
        place = "" if job.is_standard else f"; written to {job.output}"
        print(f"{line}{place}", file=sys.stderr, flush=True)


def open_items(job: Job, experiment: Experiment, data: DataSet, data_dir: str) -> Items:
    """What --input names.

    Raises:
        InputError: nothing that can be predicted.
        UsageError: data that clients cannot have.
    """
    if not data.kind:
        raise UsageError(
            f"{type(data).__name__} does not say what a client has of an example: give it `kind` "
            "and `preprocess` (input/batches.py)."
        )
    if not job.source.startswith(SPLIT):
        return inputs.open_items(job.source, data.kind, job.form, job.field)
    name = job.source.removeprefix(SPLIT)
    source = {data.evaluation_split: data.held_out}.get(name)
    if source is None:
        try:
            other = dataclasses.replace(experiment.data, evaluation_split=name)  # type: ignore[type-var]
        except (TypeError, ValueError):
            raise UsageError(
                f"--input={job.source}: these data have the split {data.evaluation_split} alone; "
                "others are of TFDS sets."
            ) from None
        source = other.open(data_dir).held_out
    return inputs.Split(source, f"{name} {len(source)} {data.digest}")


def claim(shards: Shards, job: Job, run: Trained, items: Items, weights: str) -> None:
    """Says what the shards are of."""
    about = {"input": job.source, "digest": items.digest, "items": len(items)}
    about |= {"top": job.top, "batch": job.batch, "weights": weights, "step": run.step}
    shards.claim(about | {"weights_sha256": run.manifest()["weights_sha256"]})


class Reader:
    """Items to inputs, some ahead of the computation."""

    def __init__(self, items: Items, data: DataSet, job: Job) -> None:
        self.items, self.kind, self.job = items, data.kind, job
        strings = [tf.TensorSpec([None], tf.string)]
        self.preprocess = tf.function(
            lambda raw: data.preprocess(raw, job.limits), input_signature=strings
        )
        self.preprocess.get_concrete_function()  # traced now, not while it is timed

    def batches(self, shards: Shards, mine: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """(shard, items) of each batch: in order, or of like length within a shard."""
        for shard in mine:
            places = list(shards.places(shard))
            if self.kind == "text":
                places.sort(key=lambda i: len(self._raw(i)[0] or b""))
            for start in range(0, len(places), self.job.batch):
                yield shard, places[start : start + self.job.batch]

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
                    errors[i] = f"it cannot be decoded: {str(error).strip().partition(chr(10))[0]}"
                    del raws[i]
        return self._batch(places, raws, errors, labels)

    def _batch(
        self, places: Sequence[int], raws: dict[int, bytes], errors: dict[int, str],
        labels: dict[int, int],
    ) -> Batch:  # fmt: skip
        if not raws:
            return Batch(places, None, errors, labels)
        x = self.preprocess(tf.constant(list(raws.values())))
        padding = [[0, self.job.batch - len(raws)]] + [[0, 0]] * (len(x.shape) - 1)
        return Batch(places, tf.pad(x, padding), errors, labels)

    def _raw(self, i: int) -> tuple[bytes | None, int | str | None]:
        """An item and its label, or None and what is wrong with it."""
        try:
            raw, label = self.items.fetch(i)
            self.job.limits.check(self.kind, raw)
        except OSError as error:
            return None, f"it cannot be read: {error.strerror or error}"
        except ValueError as error:
            return None, str(error)
        return raw, label


class Told:
    """Gathers what is known of items, and keeps each shard when all of it is.

    Attributes:
        counts: items, errors, items with a label, and of these those that are right.
    """

    def __init__(
        self, shards: Shards, reader: Reader, classes: Sequence[str], top: int, bar: Any
    ) -> None:
        self.shards, self.reader, self.classes, self.top = shards, reader, classes, top
        self.bar, self.counts = bar, [0, 0, 0, 0]
        self._rows: dict[int, dict[int, Row]] = {}
        self._lock = threading.Lock()

    def run(self, forward: Forward, mine: Sequence[int], lanes: int) -> None:
        """Computes this rank's shards."""
        batches = list(self.reader.batches(self.shards, mine))
        ahead: dict[int, Future[Batch]] = {}
        taken: dict[int, Batch] = {}
        with ThreadPoolExecutor(lanes, thread_name_prefix="read") as pool:

            def begin(m: int) -> None:
                with self._lock:
                    if m < len(batches) and m not in ahead:
                        ahead[m] = pool.submit(self.reader.read, batches[m][1])

            def read(m: int) -> tf.Tensor | None:
                begin(m)
                for later in range(m + 1, m + 1 + AHEAD * lanes):
                    begin(later)
                taken[m] = ahead[m].result()
                ahead[m] = Future()  # it was read, and need not be held
                return taken[m].inputs

            forward(len(batches), read, lambda m, y: self.note(batches[m][0], taken.pop(m), y))

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
        self._count(y is None, label is not None, y is not None and np.argmax(y) == label)
        if y is None:
            return {**row, "error": batch.errors[i]}
        best = np.argsort(-y, kind="stable")[: self.top]  # of equals, the first class
        named = {self.classes[k]: float(str(y[k])) for k in best}
        if self.shards.output.suffix == ".csv":
            for k, (name, value) in enumerate(named.items(), 1):
                row |= {f"class_{k}": name, f"probability_{k}": value}
            return row
        return {**row, "class": next(iter(named)), "probabilities": named}

    def _count(self, *found: bool) -> None:
        with self._lock:
            self.counts = [n + bool(f) for n, f in zip(self.counts, (True, *found), strict=True)]


def progress(where: Topology, shards: int) -> Any:
    """A bar over rank 0's shards; the others have as many, or one fewer."""
    file = terminal() if where.is_chief else None
    return tqdm(total=shards, unit="shard", file=file, leave=False, disable=file is None)


def closing(counts: np.ndarray, seconds: float, kept: int) -> str:
    """The last line."""
    items, errors, labelled, right = map(int, counts)
    told = f"{items:,} items in {seconds:.1f} s ({items / seconds:.1f} a second)"
    told += f", {kept} shards were done before" if kept else ""
    told += f"; {errors:,} could not be read" if errors else ""
    told += f"; accuracy {right / labelled:.4f} of {labelled:,} with labels" if labelled else ""
    return told
