"""Replicas that differ are found, and what was seen is said: which, by how much, of what kind."""

import numpy as np
import pytest
import ranks
import tensorflow as tf
from shallow import Shallow

from app.config import Experiment, Layout, Optimization
from app.errors import DivergedError
from app.training import divergence, setup
from app.training.divergence import Difference
from app.training.state import State


def first_kernel(state):
    return next(v for n, v in state.state_dict().items() if n == "weights/conv2d/kernel")


def rounded(state):
    """One unit in the last place of all of a kernel."""
    first_kernel(state).assign(np.nextafter(first_kernel(state).numpy(), np.float32(9)))


def flipped(state):
    """A bit in the middle of a number."""
    bits = first_kernel(state).numpy().view(np.uint32)
    bits.flat[3] ^= 1 << 15
    first_kernel(state).assign(bits.view(np.float32))


def overwritten(state):
    """Memory that holds something else."""
    first_kernel(state).assign(tf.fill(first_kernel(state).shape, 1e9))


def not_a_number(state):
    variable = first_kernel(state)
    variable.assign(tf.fill(variable.shape, np.float32("nan")))


FAULTS = (rounded, flipped, overwritten, not_a_number)


def checks():
    """On a rank: what a check says of each fault of rank 1, and of one that is repaired."""
    topology, _ = setup.join(Layout())
    experiment = Experiment(Shallow(), None, 4, 4, steps=1, optimization=Optimization())
    state = State(experiment, tf.TensorSpec([None, 8, 8, 3]), 5)
    whole = state.snapshot()
    found = {"nothing": divergence.check(state, topology, 9, is_repaired=False)}
    for fault in FAULTS:
        state.assign(whole)
        if topology.rank == 1:
            fault(state)
        try:
            divergence.check(state, topology, 9, is_repaired=False)
        except DivergedError as error:
            found[fault.__name__] = str(error)
    try:
        found["repaired"] = divergence.check(state, topology, 9, is_repaired=True)
    except DivergedError as error:
        found["not repaired"] = str(error)
    if topology.size > 2:
        found["after"] = divergence.check(state, topology, 9, is_repaired=False)
        assert np.isfinite(first_kernel(state).numpy()).all()
    return found


@pytest.fixture(scope="module")
def messages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return {n: ranks.call(n, folder, checks) for n in (2, 3)}


@pytest.mark.ranks
def test_replicas_that_differ_are_found_and_named(messages):
    for size, (first, *others) in messages.items():
        assert all(other == first for other in others)
        assert first["nothing"] is None
        who = "the ranks hold" if size == 2 else "rank 1 holds"
        for fault in FAULTS:
            what = f"after step 9 {who} other values of weights/conv2d/kernel"
            assert first[fault.__name__].startswith(what)
    two = messages[2][0]
    assert "nobody knows without a majority" in two["rounded"] and "not repaired" in two


@pytest.mark.ranks
def test_what_was_seen_tells_rounding_from_damage(messages):
    found = messages[3][0]
    kernel = "conv2d/kernel (108 of 108 elements, by at most 1 unit in the last place)"
    assert f"weights/{kernel}. It looks like rounding" in found["rounded"]
    assert "report" in found["rounded"]
    assert "(1 of 108 elements, by at most 32,768 units" in found["flipped"]
    for fault in ("flipped", "overwritten", "not_a_number"):
        assert "looks like damage" in found[fault], fault


@pytest.mark.ranks
def test_the_majority_repairs(messages):
    found = messages[3][0]
    assert "rank 1 holds other values" in found["repaired"]
    assert "repaired from rank 0" in found["repaired"] and found["after"] is None


def test_a_count_that_differs_is_no_rounding():
    count = Difference("updates", 1, *divergence._apart(np.int32(4), np.int32(5)))
    assert divergence.kind([count]) == "damage"
    assert divergence._apart(np.float32([0.0]), np.float32([-0.0])) == (1, 0, 0)
