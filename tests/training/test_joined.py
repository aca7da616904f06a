"""Small tensors that are handled as one."""

import numpy as np
import pytest
import tensorflow as tf

from app.training.joined import SMALL, Joined

pytestmark = pytest.mark.fast
SHAPES = [[2, 3], [SMALL + 1], [], [SMALL], [3, SMALL], [5]]


def values():
    random = np.random.default_rng(0)
    return [tf.constant(random.standard_normal(shape), tf.float32) for shape in SHAPES]


@pytest.mark.parametrize("may", [True, False])
def test_what_is_joined_and_split_is_what_it_was(may):
    joined = Joined([tf.TensorShape(s) for s in SHAPES], [may] * len(SHAPES))
    one = joined.join(values())
    assert [x.shape for x in one] == joined.shapes
    for before, after in zip(values(), joined.split(one), strict=True):
        assert after.shape == before.shape and np.array_equal(after, before)


def test_small_tensors_become_one_vector_after_the_large_ones():
    joined = Joined([tf.TensorShape(s) for s in SHAPES], [True, True, True, True, True, False])
    assert joined.places == [1, 4, 5, 0]
    assert [shape.as_list() for shape in joined.shapes] == [
        [SMALL + 1], [3, SMALL], [5], [6 + 1 + SMALL],
    ]  # fmt: skip


def test_large_tensors_alone_have_no_vector():
    joined = Joined([tf.TensorShape([SMALL + 1])], [True])
    x = tf.zeros([SMALL + 1])
    assert joined.join([x]) == [x] and joined.places == [0]


def test_a_large_sparse_gradient_stays_sparse_and_a_small_one_becomes_dense():
    def rows(count):
        return tf.IndexedSlices(tf.ones([1, 4]), tf.constant([1]), tf.constant([count, 4]))

    joined = Joined([tf.TensorShape([SMALL, 4]), tf.TensorShape([2, 4])], [True, True])
    large, vector = joined.join([rows(SMALL), rows(2)])
    assert isinstance(large, tf.IndexedSlices)
    assert vector.numpy().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
