"""Objectives as units: their numbers against scikit-learn's, whichever way examples are divided."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics as sklearn

from app.errors import UsageError
from app.objectives import (
    Classification,
    KerasLoss,
    LanguageModel,
    MultiLabel,
    Regression,
    TokenClassification,
)
from app.objectives.multilabel import BINS, LARGEST

pytestmark = pytest.mark.fast
N, K, T = 37, 5, 6


def evaluated(objective, outputs, targets, cuts=(0, N), filled=3):
    """Metrics of batches that are cut so, each filled up with examples that do not count."""
    totals = {}
    for start, stop in itertools.pairwise(cuts):
        places = np.minimum(np.arange(start, stop + filled), N - 1)
        counts = (np.arange(start, stop + filled) < stop).astype(np.float32)
        sums = objective.sums(tf.constant(outputs[places]), tf.constant(targets[places]), counts)
        for name, value in sums.items():
            totals[name] = totals.get(name, 0) + value.numpy()
    return objective.metrics(totals)


def must_be_the_same_for_any_cut(objective, outputs, targets):
    whole = evaluated(objective, outputs, targets)
    for cuts in ((0, 1, N), (0, 10, 20, N), (0, 36, N)):
        found = evaluated(objective, outputs, targets, cuts)
        assert found == pytest.approx(whole, rel=1e-12)
    return whole


@pytest.fixture
def random():
    return np.random.default_rng(5)


@pytest.mark.parametrize(("centre", "spread"), [(0.0, 1.0), (1000.0, 3.0)])
def test_regression(random, centre, spread):
    outputs = random.normal(size=[N, 2]).astype(np.float32)
    targets = (outputs + random.normal(size=[N, 2]) + 1000).astype(np.float32)
    objective = Regression(centre=centre, spread=spread)
    found = must_be_the_same_for_any_cut(objective, outputs, targets)
    outputs = objective.scores(outputs)
    assert found["mae"] == pytest.approx(sklearn.mean_absolute_error(targets, outputs), rel=1e-6)
    squared = sklearn.mean_squared_error(targets, outputs)
    assert found["loss"] == pytest.approx(squared / spread**2, rel=1e-5)
    assert found["rmse"] == pytest.approx(squared**0.5, rel=1e-6)
    wide = targets.astype(np.float64), np.asarray(outputs, np.float64)
    assert found["r2"] == pytest.approx(sklearn.r2_score(*wide), rel=1e-9)
    assert found["examples"] == N


@pytest.mark.parametrize("delta", [0.5, 2.0])
def test_huber(delta):
    errors = np.array([[-3.0], [-0.4], [0.0], [0.5], [7.0]], np.float32)
    found = Regression("huber", delta).losses(tf.constant(errors), tf.zeros([5, 1]))
    size = np.abs(errors[:, 0])
    expected = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_multilabel(random):
    outputs = (random.normal(size=[N, K]) * 3).astype(np.float32)
    targets = (random.random([N, K]) < 0.3).astype(np.float32)
    targets[:, 4] = 0  # a class that does not occur
    found = must_be_the_same_for_any_cut(MultiLabel(), outputs, targets)
    binned = np.clip(np.floor((outputs + LARGEST) * BINS / (2 * LARGEST)), 0, BINS - 1)
    each = [sklearn.average_precision_score(targets[:, k], binned[:, k]) for k in range(4)]
    assert found["map"] == pytest.approx(np.mean(each), rel=1e-12)
    assert found["f1"] == pytest.approx(
        sklearn.f1_score(targets.ravel(), outputs.ravel() > 0), rel=1e-12
    )
    chances = 1 / (1 + np.exp(-outputs.astype(np.float64)))
    loss = -(targets * np.log(chances) + (1 - targets) * np.log(1 - chances)).mean()
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["accuracy"] == pytest.approx(np.mean((outputs > 0) == targets), rel=1e-6)


def tokens(random):
    outputs = random.normal(size=[N, T, K]).astype(np.float32)
    targets = random.integers(-1, K - 1, [N, T]).astype(np.int32)  # the last class never is
    return outputs, targets, targets >= 0


def test_token_classification(random):
    outputs, targets, counts = tokens(random)
    found = must_be_the_same_for_any_cut(TokenClassification(), outputs, targets)
    are, named = targets[counts], outputs.argmax(-1)[counts]
    assert found["tokens"] == counts.sum()
    assert found["accuracy"] == pytest.approx(np.mean(are == named))
    occur = sorted(set(are))
    f1 = sklearn.f1_score(are, named, average="macro", labels=occur)
    assert found["f1"] == pytest.approx(f1, rel=1e-12)


def test_language_model(random):
    outputs, targets, counts = tokens(random)
    found = must_be_the_same_for_any_cut(LanguageModel(), outputs, targets)
    wide = outputs.astype(np.float64)[counts]
    losses = np.log(np.exp(wide).sum(-1)) - wide[range(len(wide)), targets[counts]]
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-6)
    assert found["perplexity"] == pytest.approx(np.exp(losses.mean()), rel=1e-6)


def test_a_loss_and_metrics_of_keras(random):
    outputs, targets = random.normal(size=[2, N, 3]).astype(np.float32)
    objective = KerasLoss("LogCosh", ("mean_absolute_error",))
    found = must_be_the_same_for_any_cut(objective, outputs, targets)
    assert found["loss"] == pytest.approx(np.log(np.cosh(outputs - targets)).mean(), rel=1e-5)
    mae = sklearn.mean_absolute_error(targets, outputs)
    assert found["mean_absolute_error"] == pytest.approx(mae, rel=1e-6)


NUMBERS = SimpleNamespace(num_classes=0, target_spec=tf.TensorSpec([None, 2]))
CLASSES = SimpleNamespace(num_classes=K, target_spec=tf.TensorSpec([None, K]))
TOKENS = SimpleNamespace(num_classes=K, target_spec=tf.TensorSpec([None, None], tf.int32))


@pytest.mark.parametrize(
    ("objective", "data", "words"),
    [
        (Classification(), NUMBERS, ["Classification needs a class", "float32 [None, 2]"]),
        (Regression(), CLASSES, ["Regression needs", "no classes", "5 classes"]),
        (Regression(), TOKENS, ["Regression needs", "int32"]),
        (MultiLabel(), NUMBERS, ["MultiLabel needs", "0 and 1"]),
        (TokenClassification(), CLASSES, ["a class for each token", "5 classes"]),
        (LanguageModel(), NUMBERS, ["a class for each token"]),
        (KerasLoss("mean_sqared_error"), NUMBERS, ["no such name", "nearest: mean_squared_error"]),
        (KerasLoss("dice"), NUMBERS, ["objective.loss=dice", "no value for each example"]),
        (KerasLoss(metrics_of=("AUC",)), CLASSES, ["objective.metrics_of=AUC", "histograms"]),
    ],
)
def test_data_or_names_that_do_not_fit_are_refused(objective, data, words):
    with pytest.raises(UsageError) as error:
        objective.check(data)
    for word in words:
        assert word in str(error.value), error.value


@pytest.mark.parametrize(
    ("objective", "data"),
    [
        (Classification(), CLASSES), (Regression(), NUMBERS), (MultiLabel(), CLASSES),
        (TokenClassification(), TOKENS), (LanguageModel(), TOKENS), (KerasLoss(), NUMBERS),
    ],
)  # fmt: skip
def test_data_that_fit_are_taken(objective, data):
    objective.check(data)
    assert objective.num_outputs(data) == (data.num_classes or 2)
