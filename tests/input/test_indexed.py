"""The loop over a data set: a kind of data says only how its examples are decoded."""

import numpy as np
import pytest
import tensorflow as tf

from input import InputError
from input.indexed import IndexedDataSet
from input.order import Order
from input.source import Encoded

pytestmark = pytest.mark.fast


class Numbers(Encoded):
    """Examples whose bytes are their ids, one of them damaged."""

    classes = ("even", "odd")

    def __init__(self, count, damaged=None):
        self.count, self.damaged = count, damaged

    def __len__(self):
        return self.count

    def fetch(self, ids):
        raws = [b"x" if i == self.damaged else str(i).encode() for i in ids]
        return raws, [int(i) % 2 for i in ids]

    def name(self, example):
        return f"number {example}"


class Keyed(IndexedDataSet):
    """Inputs are (id, seed, place), and in training the micro-batch's number."""

    decodes_batches = False

    def decode(self, raw, key):
        columns = tf.strings.to_number(raw, tf.int64)[..., tf.newaxis]
        return columns if key is None else tf.concat([columns, key], -1)

    def mix(self, inputs, targets, key):
        return tf.concat([inputs, tf.fill([inputs.shape[0], 1], key[1])], -1), targets

    def diagnose(self, raw):
        if not raw.isdigit():
            raise ValueError("it is no number")


class KeyedTogether(Keyed):
    decodes_batches = True


@pytest.mark.parametrize("kind", [Keyed, KeyedTogether])
def test_a_micro_batch_and_its_keys_are_a_function_of_its_number(kind):
    data = kind(Numbers(10), Numbers(5), "test")
    order = Order(7, 10, 4)
    for k, (inputs, targets, ids) in enumerate(data.train(7, 4, lambda k: 2 * k + 1, 5)):
        number = 2 * k + 1
        assert np.array_equal(ids, order.examples(number))
        columns = [ids, [7] * 4, range(4 * number, 4 * number + 4), [number] * 4]
        assert np.array_equal(inputs, np.transpose(columns))
        assert np.array_equal(tf.argmax(targets, -1), ids.numpy() % 2)
    assert k == 4


@pytest.mark.parametrize("kind", [Keyed, KeyedTogether])
def test_evaluation_fills_up_the_last_batch_with_weight_0(kind):
    data = kind(Numbers(10), Numbers(5), "test")
    batches = list(data.evaluation(2, range(1, 4)))
    assert [inputs.numpy().ravel().tolist() for inputs, _, _ in batches] == [[1, 2], [3, 1]]
    assert [weights.numpy().tolist() for _, _, weights in batches] == [[1, 1], [1, 0]]
    assert list(data.evaluation(2, range(0))) == []


@pytest.mark.parametrize("kind", [Keyed, KeyedTogether])
def test_a_damaged_example_is_named(kind):
    data = kind(Numbers(10, damaged=6), Numbers(5, damaged=3), "test")
    with pytest.raises(InputError, match=r"cannot read number 6: it is no number\."):
        list(data.train(7, 4, lambda k: k, 3))
    with pytest.raises(InputError, match=r"cannot read number 3: it is no number\."):
        list(data.evaluation(2, range(5)))
