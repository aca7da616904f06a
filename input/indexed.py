"""Iterates over a data set that is read by index: order, read, decode, batch.

    training      micro-batch number -> ids (order.py) -> examples -> inputs, targets, ids
    evaluation    range of ids, filled up               -> examples -> inputs, targets, weights

Everything is a function of the micro-batch's number and the seed, so any process can make any
micro-batch. An example is made in two halves: its `Source` reads, decodes and collates in NumPy;
then `decode` and `mix` run in the graph. Data of your own need the first half only, images
(`images.image_set`) and texts (`text.text_set`) mostly have the second.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from input import InputError, failures, labels, nests
from input.batches import Batch, Batches, DataSet, raise_for_damaged
from input.order import Order, generator
from input.raw import Limits
from input.source import CLASS, Ids, Source
from input.targets import Targets

MAX_PARALLEL_CALLS = 16  # of a map, as many as TensorFlow uses where it does not tune
AUGMENTATION = 2  # third part of the key of `Source.example`: 0 and 1 order the examples
CHUNK = 256  # examples read at once to check them


class IndexedDataSet(DataSet):
    """A training split and an evaluation split, each read by index.

    Args:
        training: the training split.
        held_out: the evaluation split.
        evaluation_split: its name.

    Attributes:
        decodes_batches: whether `decode` takes the examples of a micro-batch together.
        lengths: of the training examples, to group them by; None: they are not grouped.
        specs: of what the splits give, before `decode`: inputs and targets, nests of `Spec`.
        targets: what the targets are.

    Raises:
        InputError: the first example cannot be read, or the classes do not fit the targets.
    """

    decodes_batches = True

    def __init__(self, training: Source, held_out: Source, evaluation_split: str = "test") -> None:
        self.training, self.held_out = training, held_out
        self.evaluation_split = evaluation_split
        self.classes, self.num_classes = tuple(training.classes), len(training.classes)
        self.num_train, self.num_evaluation = len(training), len(held_out)
        self.specs = training.specs or _inferred(training)
        self.targets = Targets(self.specs[1], self.classes)
        try:
            self.targets.require(type(training).__name__)
        except ValueError as error:
            raise InputError(f"{error}.") from None
        self.input_spec = _batched(self.specs[0])
        self.target_spec = _batched(self.specs[1])
        if self.targets.meaning == "class":
            self.target_spec = tf.TensorSpec([None, self.num_classes], tf.float32)

    def decode(self, raw: Any, key: tf.Tensor | None) -> Any:
        """Maps an example as its split gives it to an input; of `decodes_batches`, [b, ...] of all.

        Args:
            raw: the example's inputs, as in `specs`.
            key: what augmentation may depend on, (seed, place in the training sequence), int64
                [2] or [b, 2]; None in evaluation.
        """
        return raw

    def mix(self, inputs: Any, targets: Any, key: tf.Tensor) -> tuple[Any, Any]:
        """Augments a training micro-batch as a whole; the key is (seed, its number), int64 [2]."""
        return inputs, targets

    def check(self, raw: Any) -> None:
        """Checks each example's inputs as they are read; raises ValueError for unusable ones."""
        return None

    def diagnose(self, raw: Any) -> None:
        """Raises ValueError for an example that `decode` fails for."""
        return None

    def preprocess(self, raw: Any, limits: Limits) -> Any:
        """See `DataSet`: clients send inputs."""
        return raw

    @property
    def lengths(self) -> np.ndarray | None:
        """See the class."""
        return self.training.lengths

    def ready(self) -> Iterator[None]:
        """See `DataSet`."""
        if self.targets.meaning == "class":
            labels.require_labels(self.held_out, self.evaluation_split)
        return iter(())

    def survey(self) -> Iterator[tuple[str, Any]]:
        """Reads every example of both splits once; yields a split's name and some of its targets.

        Raises:
            InputError: names the example that cannot be used.
        """
        for split, source in (("train", self.training), (self.evaluation_split, self.held_out)):
            for start in range(0, len(source), CHUNK):
                ids = np.arange(start, min(start + CHUNK, len(source)))
                try:
                    leaves = self._read(source, ids)
                except (OSError, ValueError):
                    raise_for_damaged(ids, self._diagnose(source), source.name)
                    raise
                yield split, nests.pack(self.specs, iter(leaves))[1]

    @tf.autograph.experimental.do_not_convert  # nothing needs it, and its search is slow
    def train(
        self, seed: int, micro_batch: int, numbers: Callable[[Any], Any], count: int
    ) -> Batches:
        """See `DataSet`."""
        order = Order(seed, self.num_train, micro_batch, self.lengths)

        def read(number: np.ndarray) -> tuple[np.ndarray, ...]:
            ids, places = order.examples(int(number)), order.places(int(number))
            return *self._read(self.training, ids, seed, places), ids, places

        def keys(at: tf.Tensor) -> tf.Tensor:
            return tf.stack([tf.fill(tf.shape(at), tf.cast(seed, tf.int64)), at], -1)

        def decode(raw: Any, targets: Any, i: tf.Tensor, place: tf.Tensor) -> Any:
            return self.decode(raw, keys(place)), targets, i, place

        def finish(x: Any, targets: Any, ids: tf.Tensor, places: tf.Tensor) -> Batch:
            x, targets = self.pair(x, targets)
            return *self.mix(x, targets, keys(places[0] // micro_batch)), ids

        dataset = tf.data.Dataset.range(count).map(
            lambda k: self._call(read, numbers(k), micro_batch, 2), **parallel()
        )
        dataset = self._decoded(dataset, decode, micro_batch).map(finish)
        return self._batches(dataset, self.training, lambda k: order.examples(int(numbers(k))))

    @tf.autograph.experimental.do_not_convert  # nothing needs it, and its search is slow
    def evaluation(self, micro_batch: int, examples: range) -> Batches:
        """See `DataSet`."""
        ids, weights = padded(examples, micro_batch)

        def read(some: np.ndarray) -> tuple[np.ndarray, ...]:
            return tuple(self._read(self.held_out, some))

        def decode(raw: Any, targets: Any, weight: tf.Tensor) -> Batch:
            return *self.pair(self.decode(raw, None), targets), weight

        dataset = (
            tf.data.Dataset.from_tensor_slices((ids, weights))
            .batch(micro_batch, drop_remainder=True)
            .map(lambda i, w: (*self._call(read, i, micro_batch, 0), w), **parallel())
        )
        return self._batches(
            self._decoded(dataset, decode, micro_batch),
            self.held_out,
            lambda k: ids[k * micro_batch : (k + 1) * micro_batch],
        )

    def pair(self, decoded: Any, targets: Any) -> tuple[Any, Any]:
        """Makes inputs and targets of what was decoded, and of what the split gives as targets."""
        is_class = self.targets.meaning == "class"
        return decoded, tf.one_hot(targets, self.num_classes) if is_class else targets

    def _decoded(
        self, dataset: tf.data.Dataset, decode: Callable[..., Any], micro_batch: int
    ) -> tf.data.Dataset:
        if self.decodes_batches:
            return dataset.map(decode, **parallel())
        dataset = dataset.unbatch().map(decode, **parallel())
        return dataset.batch(micro_batch, drop_remainder=True)

    def _call(
        self, read: Callable[..., Any], argument: tf.Tensor, length: int, more: int
    ) -> tuple[Any, ...]:
        """Calls `read` from the graph; returns inputs, targets, and `more` of int64 [length]."""
        specs = [spec for _, spec in nests.flatten(self.specs)] + [CLASS] * more
        outputs = numpy_function(read, argument, [(s.dtype, [length, *s.shape]) for s in specs])
        at = len(outputs) - more
        return *nests.pack(self.specs, iter(outputs[:at])), *outputs[at:]

    def _read(
        self, source: Source, ids: Ids, seed: int = 0,
        places: np.ndarray | None = None,
    ) -> list[np.ndarray]:  # fmt: skip
        """Reads, checks and collates examples; returns the leaves of inputs and targets.

        Args:
            source: the split.
            ids: of the examples.
            seed: the experiment's.
            places: in the training sequence; None in evaluation.
        """
        inputs, targets = source.fetch(ids)
        examples = []
        augments = type(source).example is not Source.example
        for k, (x, y) in enumerate(zip(inputs, targets, strict=True)):
            if augments:
                random = None if places is None else generator(seed, int(places[k]), AUGMENTATION)
                x, y = source.example(x, y, random)
            self.check(x)
            parts = [nests.fit(x, self.specs[0], "inputs"), nests.fit(y, self.specs[1], "targets")]
            self.targets.check(parts[1])
            examples.append([*parts[0], *parts[1]])
        return source.collate(examples, self.specs)

    def _diagnose(self, source: Source) -> Callable[[int], None]:
        def diagnose(example: int) -> None:
            self._read(source, np.array([example]))
            self.diagnose(source.fetch(np.array([example]))[0][0])

        return diagnose

    def _batches(
        self, dataset: tf.data.Dataset, source: Source, ids: Callable[[int], np.ndarray]
    ) -> Batches:
        return Batches(dataset.prefetch(2), ids, self._diagnose(source), source.name)


def _inferred(source: Source) -> tuple[Any, Any]:
    """Returns the specs of a split's first example."""
    if not len(source):
        raise InputError(f"the training split ({type(source).__name__}) has no examples.")
    try:
        (inputs,), (targets,) = source.fetch(np.array([0]))
        inputs, targets = source.example(inputs, targets, None)
        found = nests.infer(inputs, "inputs"), nests.infer(targets, "targets")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {source.name(0)}: {failures.sentence(error)}.") from None
    if isinstance(found[1], nests.Spec) and not found[1].shape:
        # A bare number: a class, or what a regression predicts.
        is_class = found[1].dtype != "float32"
        return found[0], CLASS if is_class else nests.Spec((1,), "float32")
    return found


def _batched(specs: Any) -> Any:
    """Returns the nest of TensorSpec of a micro-batch."""
    leaves = (tf.TensorSpec([None, *s.shape], s.dtype) for _, s in nests.flatten(specs))
    return nests.pack(specs, leaves)


def parallel() -> dict[str, Any]:
    """Returns options of a map: on this process's cores, in order.

    Each call holds what it has read, a micro-batch or an example: a machine of many cores must not
    fill its memory with them.
    """
    calls = min(len(os.sched_getaffinity(0)), MAX_PARALLEL_CALLS)
    return {"num_parallel_calls": calls, "deterministic": True}


def padded(examples: range, micro_batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids in whole micro-batches, and weights: 0 where an example is repeated."""
    ids = np.array(examples, np.int64)
    whole = np.resize(ids, -(-len(ids) // micro_batch) * micro_batch) if len(ids) else ids
    return whole, (np.arange(len(whole)) < len(ids)).astype(np.float32)


def numpy_function(
    read: Callable[..., Sequence[np.ndarray]], argument: tf.Tensor,
    specs: Sequence[tuple[str, Sequence[int | None]]],
) -> list[tf.Tensor]:  # fmt: skip
    """Calls Python from the graph; outputs have these types and shapes."""
    # Declared stateless, or op determinism would run the reads one after the other.
    types = [tf.as_dtype(dtype) for dtype, _ in specs]
    outputs = tf.numpy_function(read, [argument], types, stateful=False)
    return [tf.ensure_shape(x, shape) for x, (_, shape) in zip(outputs, specs, strict=True)]
