import numpy as np
import pytest
import tensorflow as tf

from app.config import Optimization
from app.experiments import resnet50_imagenet
from app.training.optimization import learning_rate, trust_ratios, update

pytestmark = pytest.mark.fast


def test_goyal_schedule():
    e = resnet50_imagenet()
    n = 1_281_167

    def rate(epoch):
        return learning_rate(e.optimization, int(epoch * n / 8192), 8192, n, e.total_steps(n))

    assert rate(0) == pytest.approx(3.2 * 8192 / (5 * n))
    assert rate(2.5) == pytest.approx(1.6, rel=0.01)
    assert [rate(x) for x in (6, 29, 31, 61, 81)] == pytest.approx([3.2, 3.2, 0.32, 0.032, 0.0032])


def test_the_schedule_counts_examples():
    o = Optimization(warmup_epochs=1, schedule="cosine")
    # The same epoch at twice the batch: twice the rate, by linear scaling.
    small = learning_rate(o, 50, 100, 1000, 100)
    assert learning_rate(o, 25, 200, 1000, 50) == pytest.approx(2 * small)


def test_cosine_ends_near_zero():
    o = Optimization(warmup_epochs=0)
    assert learning_rate(o, 0, 256, 25600, 100) == pytest.approx(0.1)
    assert learning_rate(o, 50, 256, 25600, 100) == pytest.approx(0.05)
    assert learning_rate(o, 99, 256, 25600, 100) < 1e-4


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_updates_against_numpy(optimizer, nesterov):
    o = Optimization(optimizer=optimizer, momentum=0.9, weight_decay=0.1, nesterov=nesterov)
    start = [np.array([[1.0, -2.0], [3.0, 4.0]]), np.array([1.0, -1.0])]  # a kernel, a bias
    weights = [tf.Variable(w, dtype=tf.float32) for w in start]
    slots = [tf.Variable(tf.zeros_like(w)) for w in weights]
    gradients = [np.array([[0.5, 0.1], [-0.2, 0.3]]), np.array([0.3, 0.2])]
    expected, momenta = [w.copy() for w in start], [np.zeros_like(w) for w in start]
    for _ in range(3):
        given = [tf.constant(g, tf.float32) for g in gradients]
        ratios = trust_ratios(o, weights, tf.stack([tf.norm(g) for g in given]))
        for w, slot, g, ratio in zip(weights, slots, given, ratios, strict=True):
            update(o, w, [slot], g, ratio, tf.constant(0.1), tf.constant(1.0))
        for w, u, g in zip(expected, momenta, gradients, strict=True):
            step = g.copy()
            if w.ndim > 1:
                step = g + 0.1 * w
                if optimizer == "lars":
                    norm, size = np.linalg.norm(g), np.linalg.norm(w)
                    step *= 0.001 * size / (norm + 0.1 * size)
            u[...] = 0.9 * u + step
            w -= 0.1 * ((step + 0.9 * u) if nesterov else u)
    for w, e in zip(weights, expected, strict=True):
        np.testing.assert_allclose(w, e, rtol=1e-5)
