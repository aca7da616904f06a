"""The evaluator as a unit: a model whose outputs are its inputs, on batches that are given."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from app.errors import DataError
from app.objectives import Classification
from app.parallel.topology import Topology
from app.training.evaluation import Evaluator
from input import InputError

pytestmark = pytest.mark.fast
CLASSES, EXAMPLES, BATCH = 7, 23, 4


class Outputs:
    """A state whose model returns its inputs, plus `shift` of the first class while averaged."""

    has_average = False
    shift = 0.0

    def outputs(self, inputs):
        return inputs + tf.one_hot(0, CLASSES) * self.shift

    @contextlib.contextmanager
    def averaged(self):
        self.shift = 100.0
        yield
        self.shift = 0.0


def batched(logits, labels):
    """Data of these outputs and labels; a batch is filled up with examples of weight 0."""

    def batches(micro_batch, own):
        for start in range(own.start, own.stop, micro_batch):
            places = np.arange(start, start + micro_batch)
            weights = (places < own.stop).astype(np.float32)
            places = np.minimum(places, own.stop - 1)
            targets = tf.one_hot(labels[places], CLASSES)
            yield tf.constant(logits[places], tf.float32), targets, tf.constant(weights)

    return SimpleNamespace(
        num_evaluation=len(labels),
        evaluation_split="test",
        input_spec=tf.TensorSpec([None, CLASSES]),
        target_spec=tf.TensorSpec([None, CLASSES]),
        evaluation=lambda micro_batch, own: list(batches(micro_batch, own)),
    )


@pytest.fixture
def examples():
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, EXAMPLES)
    return random.normal(size=[EXAMPLES, CLASSES]), labels


def evaluator(data, rank=0, size=1, state=None):
    experiment = SimpleNamespace(objective=Classification(), micro_batch=BATCH)
    return Evaluator(experiment, state or Outputs(), data, Topology(rank, size))


def test_metrics_are_those_of_every_example_once(examples):
    logits, labels = examples
    found = evaluator(batched(logits, labels))()
    ranking = np.argsort(-logits, -1)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    losses = -np.log(chances[range(EXAMPLES), labels])
    assert found["examples"] == EXAMPLES
    assert found["accuracy"] == np.mean(ranking[:, 0] == labels)
    assert found["top5_accuracy"] == np.mean((ranking[:, :5] == labels[:, None]).any(-1))
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-6)


def test_the_sums_of_all_processes_are_those_of_one(examples):
    def sums(rank, size):
        each = evaluator(batched(*examples), rank, size)
        return each._own_sums()

    parts = [sums(rank, 3) for rank in range(3)]
    assert [part["count"] for part in parts] == [8, 8, 7]
    for name, total in sums(0, 1).items():
        np.testing.assert_allclose(sum(part[name] for part in parts), total, rtol=1e-12)


def test_a_process_without_examples_has_sums_too(examples):
    logits, labels = examples
    each = evaluator(batched(logits[:1], labels[:1]), rank=1, size=2)
    assert not list(each.batches)
    assert each._own_sums() == dict.fromkeys(("accuracy", "top5_accuracy", "loss", "count"), 0)


@pytest.mark.parametrize(
    ("row", "label", "top1", "top5"),
    [
        ([5, 4, 3, 2, 1, 0, 0], 0, 1, 1),
        ([5, 5, 3, 2, 1, 0, 0], 0, 1, 1),  # a tie: the lower class is first
        ([5, 5, 3, 2, 1, 0, 0], 1, 0, 1),
        ([6, 5, 4, 3, 2, 2, 0], 4, 0, 1),
        ([6, 5, 4, 3, 2, 2, 0], 5, 0, 0),
        ([np.nan] * 7, 0, 0, 0),
        ([0, 0, 0, np.nan, 0, 0, 0], 3, 0, 0),
    ],
)
def test_a_class_is_ranked_by_those_above_it(row, label, top1, top5):
    found = evaluator(batched(np.array([row], float), np.array([label])))()
    assert (found["accuracy"], found["top5_accuracy"]) == (top1, top5)


def test_moving_averages_are_evaluated_too(examples):
    logits, labels = examples
    state = Outputs()
    assert set(evaluator(batched(logits, labels), state=state).evaluate()) == {"test"}
    state.has_average = True
    found = evaluator(batched(logits, labels), state=state)
    found._sums = found._sums.python_function  # the shift is no tensor
    metrics = found.evaluate()
    assert metrics["test_average"]["accuracy"] == np.mean(labels == 0)
    assert metrics["test"]["accuracy"] != metrics["test_average"]["accuracy"]


@pytest.mark.parametrize("which", [1, 2])
def test_a_stop_leaves_no_metrics(examples, stop, which):
    """In the evaluation of the weights, or in that of their averages."""
    count, state = [], Outputs()
    state.has_average = True
    found = evaluator(batched(*examples), state=state)

    class Batches(list):
        def __iter__(self):
            count.append(1)
            if len(count) == which:
                stop.set()
            return super().__iter__()

    found.batches = Batches(found.batches)
    assert found.evaluate() is None
    assert len(count) == 2  # all ranks take part in both evaluations


def test_an_example_that_cannot_be_read_is_an_error_of_data(examples):
    found = evaluator(batched(*examples))

    def failing():
        yield next(batches)
        raise InputError("img.png is damaged")

    batches, found.batches = iter(found.batches), failing()
    with pytest.raises(DataError, match=r"img\.png is damaged") as raised:
        found()
    assert raised.value.everywhere
