"""What an opened data set is, and a process's micro-batches, read ahead of the step."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from input import InputError, failures
from input.raw import Limits

Batch = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
MOST_CALLS = 16  # at once, of a map; as many as TensorFlow takes where it does not tune


class DataSet(Protocol):
    """What a configuration of data opens.

    Attributes:
        num_classes: of the targets.
        num_train: examples that train.
        num_evaluation: examples of the split that is evaluated.
        evaluation_split: its name, for reports.
        input_spec: of a batch of inputs; None where sizes differ from batch to batch.
        limits: the least that fields of the model may be, by name.
        digest: of what the order of examples depends on beside seed and count.
        classes: names of the targets.
        meaning: what else turns outputs into answers, as JSON has it: another value, and the same
            weights would answer something else.
        kind: of what a client has of an example, `image` or `text`; "": only its inputs.
        training, held_out: the splits' examples as they are stored (`sources.py`).
    """

    num_classes: int
    num_train: int
    num_evaluation: int
    evaluation_split: str
    input_spec: tf.TensorSpec
    limits: Mapping[str, int] = MappingProxyType({})
    digest: str = ""
    classes: tuple[str, ...] = ()
    meaning: Mapping[str, Any] = MappingProxyType({})
    kind: str = ""
    training: Any = None
    held_out: Any = None

    def ready(self) -> Iterator[None]:
        """Does, a piece at a time, what takes long and has to be done before `digest` and `train`.

        Whoever opens the data goes through it, and can show between pieces that it is alive.
        """
        return iter(())

    def train(
        self, seed: int, micro_batch: int, numbers: Callable[[Any], Any], count: int
    ) -> Iterable[Batch]:
        """Training micro-batches: inputs, targets [b, classes], ids of the examples [b].

        Args:
            seed: the experiment's.
            micro_batch: examples in each.
            numbers: from k, an integer, to the number of the k-th micro-batch of this process.
            count: how many.
        """
        ...

    def evaluation(self, micro_batch: int, share: range) -> Iterable[Batch]:
        """A process's share of the evaluation split: inputs, targets, weights [b].

        Each example once; whole batches, filled up with examples of weight 0.
        """
        ...

    def preprocess(self, raw: tf.Tensor, limits: Limits) -> tf.Tensor:
        """What clients have, string [b], to inputs as in evaluation; as a graph, for any b.

        What is beyond the limits fails there: an exported model is on its own.
        """
        raise NotImplementedError

    def must_suit(self, weights: Path) -> None:
        """Checks that a folder's weights, which a model starts from, were trained for such inputs.

        Raises:
            InputError: they were not.
        """
        return None

    def baseline(self) -> dict[str, Any] | None:
        """What a simple model gives on the same splits: name, accuracy; None: not asked."""
        return None


class Batches:
    """Micro-batches that can be gone through any number of times.

    Args:
        dataset: what is gone through.
        ids: from k to the examples of the k-th micro-batch.
        check: reads one example, which fails if it is damaged.
        name: where an example is, for a person.

    Raises:
        InputError: names the example that cannot be read, on the process that reads it.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset,
        ids: Callable[[int], Iterable[int]],
        check: Callable[[int], Any],
        name: Callable[[int], str],
    ) -> None:
        self._ids, self._check, self._name = ids, check, name
        options = tf.data.Options()
        # As an iterator ends it waits for the thread that tunes it, which may sleep for a minute.
        options.autotune.enabled = False
        self._dataset = dataset.with_options(options)

    def __iter__(self) -> Iterator[Batch]:
        iterator = iter(self._dataset)
        for k in itertools.count():
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except tf.errors.OpError:
                self._name_damage(self._ids(k))
                raise
            yield batch

    def _name_damage(self, ids: Iterable[int]) -> None:
        for example in map(int, ids):
            try:
                self._check(example)
            except (tf.errors.OpError, OSError, ValueError) as error:
                raise InputError(
                    f"cannot read {self._name(example)}: {failures.sentence(error)}."
                ) from None


def check_label(label: int, num_classes: int) -> None:
    """Looks at an example's class.

    Raises:
        ValueError: there is none of this number.
    """
    if not 0 <= label < num_classes:
        raise ValueError(
            f"label {label} is not in [0, {num_classes}): a split without labels (as glue's test) "
            "can be predicted, but not train or be evaluated; set data.train_split or "
            "data.evaluation_split to one with labels"
        )


def parallel() -> dict[str, Any]:
    """How a data set is mapped: on this process's cores, in order.

    Each call holds what it has read, a micro-batch or an example: a machine of many cores must not
    fill its memory with them.
    """
    calls = min(len(os.sched_getaffinity(0)), MOST_CALLS)
    return {"num_parallel_calls": calls, "deterministic": True}


def padded(share: range, micro_batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a share of the evaluation split in whole micro-batches, and 0 where repeated."""
    ids = np.array(share, np.int64)
    whole = np.resize(ids, -(-len(ids) // micro_batch) * micro_batch) if len(ids) else ids
    return whole, (np.arange(len(whole)) < len(ids)).astype(np.float32)


def numpy_function(
    read: Callable[..., tuple[np.ndarray, ...]], argument: tf.Tensor, types: list[Any], length: int
) -> tuple[tf.Tensor, ...]:
    """Calls Python on the way; every output is [length]."""
    # Stateless, or op determinism would run the reads one after the other.
    outputs = tf.numpy_function(read, [argument], types, stateful=False)
    return tuple(tf.ensure_shape(x, [length]) for x in outputs)
