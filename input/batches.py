"""Defines what an opened data set is, and iterates over a process's micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import tensorflow as tf

from input import InputError, failures
from input.raw import Limits

Batch = tuple[Any, Any, tf.Tensor]  # inputs, targets, ids or weights; nests of [b, ...]


class DataSet(Protocol):
    """What a configuration of data opens.

    Attributes:
        num_classes: of the targets; 0: they are no classes.
        num_train: training examples.
        num_evaluation: examples of the evaluation split.
        evaluation_split: name of the evaluation split, for reports.
        input_spec: of a batch of inputs, a tensor or a nest of them (dictionaries, tuples), each
            [b, ...]; None where sizes differ from batch to batch.
        target_spec: likewise, of targets. Classes: float32 [b, K], a distribution. Several labels
            of an example: float32 [b, K], 0 or 1. Numbers: float32 [b, D]. Of tokens: int32 [b, T],
            -1 where none is counted.
        limits: lower bounds of fields of the model, by name.
        digest: of what the order of examples depends on beside seed and count.
        classes: names of the targets.
        meaning: what else the answers depend on, as JSON values: with another value, the same
            weights would answer something else.
        kind: of the examples that clients send, `image` or `text`; "": clients send inputs.
        training: the training split as it is stored, an `input.Source`; None: not known.
        held_out: likewise, the evaluation split.
    """

    num_classes: int
    num_train: int
    num_evaluation: int
    evaluation_split: str
    input_spec: Any
    target_spec: Any = None
    limits: Mapping[str, int] = MappingProxyType({})
    digest: str = ""
    classes: tuple[str, ...] = ()
    meaning: Mapping[str, Any] = MappingProxyType({})
    kind: str = ""
    training: Any = None
    held_out: Any = None

    def ready(self) -> Iterator[None]:
        """Does, piece by piece, the long work that `digest` and `train` depend on.

        Whoever opens the data iterates to the end, and can report progress between pieces.
        """
        return iter(())

    def train(
        self, seed: int, micro_batch: int, numbers: Callable[[Any], Any], count: int
    ) -> Iterable[Batch]:
        """Returns training micro-batches: inputs, targets, ids of the examples [b].

        Args:
            seed: the experiment's.
            micro_batch: examples in each.
            numbers: maps k, an integer, to the number of this process's k-th micro-batch.
            count: of micro-batches.
        """
        ...

    def evaluation(self, micro_batch: int, examples: range) -> Iterable[Batch]:
        """Returns batches of the evaluation split: inputs, targets, weights [b].

        Args:
            micro_batch: examples in each; the last is filled up with examples of weight 0.
            examples: of the split, each of which is returned once.
        """
        ...

    def preprocess(self, raw: tf.Tensor, limits: Limits) -> tf.Tensor:
        """Maps examples that clients send, string [b], to inputs as in evaluation.

        It is part of exported graphs, which check the limits themselves.
        """
        raise NotImplementedError

    def must_suit(self, weights: Path) -> None:
        """Checks that the weights in a folder were trained for such inputs.

        Raises:
            InputError: they were not.
        """
        return None

    def baseline(self) -> dict[str, Any] | None:
        """Returns name and accuracy of a simple model on the same splits; None: none is wanted."""
        return None


class Batches:
    """Micro-batches that can be iterated over any number of times.

    Args:
        dataset: of micro-batches.
        ids: maps k to the examples of the k-th micro-batch.
        diagnose: reads one example, and fails if it is damaged.
        name: returns where an example is, for messages.

    Raises:
        InputError: names the example that cannot be read, on the process that reads it.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset,
        ids: Callable[[int], Iterable[int]],
        diagnose: Callable[[int], Any],
        name: Callable[[int], str],
    ) -> None:
        self._ids, self._diagnose, self._name = ids, diagnose, name
        options = tf.data.Options()
        # When an iterator ends, it waits for its tuning thread, which may sleep for a minute.
        options.autotune.enabled = False
        self._dataset = dataset.with_options(options)

    def __iter__(self) -> Iterator[Batch]:
        count = 0
        try:
            for batch in self._dataset:
                yield batch
                count += 1
        except tf.errors.OpError:
            raise_for_damaged(self._ids(count), self._diagnose, self._name)
            raise


def raise_for_damaged(
    ids: Iterable[int], diagnose: Callable[[int], Any], name: Callable[[int], str]
) -> None:
    """Raises InputError for the first of some examples that is damaged; see `Batches`."""
    for example in map(int, ids):
        try:
            diagnose(example)
        except (tf.errors.OpError, OSError, ValueError) as error:
            raise InputError(f"cannot read {name(example)}: {failures.sentence(error)}.") from None
