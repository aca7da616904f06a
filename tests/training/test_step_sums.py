"""A step's loss is the mean over what its objective counts, on every layout."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from ranks import forked, served, succeeded
from steps import made
from tagged import tagged

from app.config import Layout
from app.errors import UsageError
from app.objectives import TokenClassification
from app.training.state import State
from app.training.step_sums import judge, names, size

RATE = 0.3
LAYOUTS = [
    Layout(),
    Layout(stages=2, cut=(2, 3)),
    Layout(stages=3, cut=(1, 3, 1), schedule="gpipe", recompute=True),
    Layout(stages=2, chunks=2, exact=True),
]


def as_a_person_would(experiment):
    """The weights after one step, and its loss: all examples of the step at once, one tape."""
    state = State.of(experiment, experiment.data.open(""))
    (part,) = state.parts
    data, losses, weights = experiment.data.open(""), [], []
    count = experiment.num_micro_batches
    with tf.GradientTape() as tape:
        for inputs, targets, _ in data.train(0, experiment.micro_batch, lambda k: k, count):
            outputs = state.outputs(inputs)
            losses.append(tf.reshape(experiment.objective.losses(outputs, targets), [-1]))
            weights.append(tf.reshape(experiment.objective.weights(targets), [-1]))
        w = tf.concat(weights, 0)
        loss = tf.reduce_sum(tf.concat(losses, 0) * w) / tf.reduce_sum(w)
        loss += sum(loss for block in part.blocks for loss in block.losses)
    gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, part.trainable)]
    norm = float(tf.linalg.global_norm(gradients))
    factor = min(1.0, experiment.optimization.clip_norm / norm)
    moved = [v - RATE * factor * g for v, g in zip(part.trainable, gradients, strict=True)]
    return dict(zip(part.names, moved, strict=True)), float(loss), norm


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_tokens_count_alike_wherever_they_are(layout, precision):
    """Micro-batches differ in their tokens: a mean of their means would be another number."""
    expected, loss, norm = as_a_person_would(tagged())
    state, step, stream = made(dataclasses.replace(tagged(), precision=precision), layout)
    metrics = step(0, stream, RATE)
    tolerance = 1e-5 if precision == "float32" else 2e-3
    assert float(metrics["loss"]) == pytest.approx(loss, rel=tolerance)
    assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=10 * tolerance)
    for name, value in expected.items():
        np.testing.assert_allclose(state.weights[name], value, atol=tolerance, err_msg=name)


def test_numbers_of_a_step():
    experiment = tagged()
    assert names(experiment.objective) == ["loss", "accuracy", "gradient_norm"]
    assert size(experiment.objective) == 3
    sums, two = tf.constant([50 / 24, 30.0, 60.0]), tf.constant(2.0)
    found = judge(experiment, [tf.constant([3.0, 4.0])], sums, two)
    assert float(found["loss"]) == pytest.approx(50 / 60)
    assert float(found["accuracy"]) == pytest.approx(0.5)
    assert float(found["scale"]) == pytest.approx(2 * 60 / 24)
    assert float(found["gradient_norm"]) == pytest.approx(5 / (2 * 60 / 24))
    empty = judge(experiment, [tf.zeros([2])], tf.zeros([3]), tf.constant(1.0))
    assert not bool(empty["finite"])


class Scalar(TokenClassification):
    def losses(self, outputs, targets):
        return tf.reduce_mean(super().losses(outputs, targets))


class Wrong(TokenClassification):
    def losses(self, outputs, targets):
        return tf.ensure_shape(super().losses(outputs, targets), [7, 5, 3])


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (Scalar(), ["Scalar.losses must return losses [b, T]", "not of shape []"]),
        (Wrong(), ["Wrong.losses fails in", "test_step_sums.py, line", "the targets [None, None]"]),
    ],
)
def test_losses_that_cannot_be_summed_are_refused(objective, words):
    experiment = dataclasses.replace(tagged(), objective=objective)
    with pytest.raises(UsageError) as error:
        State.of(experiment, experiment.data.open(""))
    for word in words:
        assert word in str(error.value), error.value


def train(run, folder, name, *flags):
    folder = folder / name
    done = run("train", "--experiment=tagged:tagged", f"--workdir={folder}", *flags)
    succeeded(done)
    return json.loads((folder / "result.json").read_text())


def test_any_job_trains_the_same_weights(tmp_path):
    """By one to three processes, of two stages, and by workers of a parameter server."""
    results = {}
    for count in (1, 2, 3):
        for stages in (1, 2):

            def run(*flags, count=count):
                return forked(count, tmp_path, *flags)

            name = f"{count}x{stages}"
            results[name] = train(run, tmp_path, name, "--exact", f"--stages={stages}")
    assert len({found["weights_sha256"] for found in results.values()}) == 1
    metrics = [found["metrics"]["test"] for found in results.values()]
    assert all(found == pytest.approx(metrics[0], rel=1e-9) for found in metrics)
    assert set(metrics[0]) == {"f1", "accuracy", "loss", "tokens"}

    def workers(*flags):
        return served(2, 1, tmp_path, *flags)

    found = train(workers, tmp_path, "ps", "--set=update.kind=parameter_server")
    assert found["metrics"]["test"] == pytest.approx(metrics[0], rel=1e-4)
