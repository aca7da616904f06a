"""What travels between processes, and where a parameter server keeps what it holds."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from steps import made

from app.config import Layout, Update
from app.errors import UsageError
from app.parallel import parameter_server, replicas
from app.parallel.parameter_server import GreedyPlacement
from app.strategies.adasum import adasum
from app.strategies.compression import Float16, TopK
from app.strategies.parameter_server import open_state

COMPRESSED = [
    Update(compression="topk", topk=0.1, on_nonfinite="skip"),
    Update(compression="float16", on_nonfinite="skip"),
]


@pytest.fixture
def two(monkeypatch):
    """As if another process always had so many times what this one has: 2, until it is assigned."""
    times = tf.Variable(2.0)

    def others(x):
        return x if x.dtype == tf.int32 else tf.cast(times, x.dtype) * x

    monkeypatch.setattr(replicas, "all_reduce", lambda x, name: x + others(x))
    monkeypatch.setattr(replicas, "all_gather", lambda x, name: tf.concat([x, others(x)], 0))
    return times


class Part:
    """One weight of 1,000 elements and one statistic."""

    def __init__(self):
        self.trainable = [tf.Variable(tf.zeros([40, 25]))]
        self.statistics, self.device = [(tf.Variable(tf.zeros([2])), 0.9)], ""
        self.num_sums = 2


@pytest.mark.parametrize(
    "kind, rule",
    [
        (TopK, Update(compression="topk", topk=0.1)),
        (Float16, Update(compression="float16")),
    ],
)
def test_what_is_not_sent_is_sent_later(two, kind, rule):
    wire = kind(Part(), ["w", "s", "m"], 2, rule)
    random, sent, given = np.random.default_rng(0), 0, 0
    for _ in range(5):
        gradient = tf.constant(random.normal(size=[40, 25]), tf.float32)
        out, statistic, metrics = wire([gradient, tf.ones([2]), tf.ones([2])])
        assert statistic.numpy().tolist() == [3, 3] == metrics.numpy().tolist()
        sent, given = sent + out.numpy() / 3, given + gradient.numpy()
        if kind is TopK:
            assert np.count_nonzero(out) == 100
    left = wire.residuals[0].numpy()
    assert np.abs(left).max() > 0
    np.testing.assert_allclose(sent + left, given, atol=2e-2 if kind is Float16 else 1e-5)
    # Three small all-reduces; of the weight half as many bytes, or 100 places and values.
    weight = 2000 if kind is Float16 else 800
    assert wire.bytes_sent == weight + 8 + 8


@pytest.mark.parametrize("rule", COMPRESSED, ids=lambda rule: rule.compression)
@pytest.mark.parametrize("cut", [(4,), (2, 2)])
def test_a_skipped_step_leaves_the_residuals_of_earlier_ones(two, shallow, rule, cut):
    """This process's gradient may be finite: the sum is not, as another process's is not."""
    shallow = dataclasses.replace(shallow, update=rule)
    layout = Layout(processes=2, stages=len(cut), cut=cut)
    state, step, stream = made(shallow, layout, range(3))
    exchanges = [sums.exchange for sums in (step.sums if len(cut) > 1 else [step.sums])]

    def residuals():
        return [r.numpy() for exchange in exchanges for r in exchange.residuals]

    assert step(0, stream, 0.01)["finite"]
    before, weights = residuals(), state.sha256()
    assert any(np.abs(r).max() > 0 for r in before)
    two.assign(np.inf)
    assert not step(1, stream, 0.01)["finite"]
    assert state.sha256() == weights
    for a, b in zip(before, residuals(), strict=True):
        assert np.array_equal(a, b)
    two.assign(2)
    assert step(2, stream, 0.01)["finite"]
    assert not all(map(np.array_equal, before, residuals()))


def test_without_feedback_nothing_is_kept(two):
    rule = Update(compression="topk", topk=0.1, error_feedback=False)
    assert not TopK(Part(), ["w", "s", "m"], 2, rule).residuals


def test_adasum_averages_what_agrees_and_adds_what_does_not():
    a, b = tf.constant([3.0, 0.0]), tf.constant([0.0, 4.0])
    assert adasum(a, b).numpy().tolist() == [3, 4]
    assert adasum(a, a).numpy().tolist() == [3, 0]
    assert adasum(a, 0 * a).numpy().tolist() == [3, 0]
    assert adasum(a, 3 * a).numpy().tolist() == pytest.approx([3 * 0.5 - 4.5 + 6 + 4.5 - 1.5, 0])


def test_variables_go_where_there_is_room(monkeypatch):
    monkeypatch.setattr(parameter_server, "server", lambda index: f"CPU:{index}")
    greedy = GreedyPlacement(2)
    with tf.variable_creator_scope(greedy.create):
        for size in (100, 40, 30, 20):
            tf.Variable(tf.zeros([size]), dtype=tf.float32)
    assert greedy.held == [400, 360] and greedy.count == 4


def test_more_servers_than_variables_are_refused(tiny, monkeypatch):
    monkeypatch.setattr(parameter_server, "server", lambda index: f"CPU:{index % 4}")
    data = tiny.data.open("")
    state, mirror = open_state(tiny, Layout(workers=1, parameter_servers=4), data, None)
    assert len({v.device for v in state.weights.values()}) == 4
    assert len({v.device for v in mirror.weights.values()}) == 1
    with pytest.raises(UsageError, match=r"1000 parameter servers need .* has \d+: start at most"):
        open_state(tiny, Layout(workers=1, parameter_servers=1000), data, None)
