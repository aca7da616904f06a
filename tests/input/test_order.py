import numpy as np
import pytest

from app.parallel.topology import slice_of
from input.order import Order

pytestmark = pytest.mark.fast


def test_an_epoch_holds_every_example_once():
    order = Order(seed=3, num_examples=12, micro_batch=4)
    ids = np.concatenate([order.examples(n) for n in range(6)])
    assert sorted(ids[:12]) == sorted(ids[12:]) == list(range(12))
    assert list(ids[:12]) != list(ids[12:])


def test_an_epoch_may_end_inside_a_micro_batch():
    order = Order(seed=3, num_examples=10, micro_batch=4)
    ids = np.concatenate([order.examples(n) for n in range(5)])
    assert sorted(ids[:10]) == sorted(ids[10:]) == list(range(10))


def test_a_step_does_not_depend_on_who_asks():
    order = Order(seed=3, num_examples=101, micro_batch=4)
    expected = [order.examples(16 + i).tolist() for i in range(8)]
    for processes in (2, 3, 8):
        shares = [slice_of(8, processes, r) for r in range(processes)]
        assert [order.examples(16 + i).tolist() for s in shares for i in s] == expected


def test_seeds_differ():
    a, b = (Order(seed, 101, 32).examples(0).tolist() for seed in (0, 1))
    assert a != b


def test_grouping_keeps_every_example_and_pads_less():
    lengths = np.random.default_rng(0).integers(3, 80, 1001)
    plain, grouped = Order(3, 1001, 16), Order(3, 1001, 16, lengths)

    def padded(order):
        return sum(lengths[order.examples(n)].max() * 16 for n in range(120))

    ids = np.concatenate([grouped.examples(n) for n in range(126)])
    assert sorted(ids[:1001]) == sorted(ids[1001:2002]) == list(range(1001))
    assert list(ids[:1001]) != list(ids[1001:2002])
    assert padded(grouped) < 0.7 * padded(plain)
    # Any reader computes it anew.
    assert Order(3, 1001, 16, lengths).examples(100).tolist() == grouped.examples(100).tolist()
