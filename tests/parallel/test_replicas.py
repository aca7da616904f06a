"""Broadcasts outside a step."""

import numpy as np
import pytest
import ranks
import tensorflow as tf

from app.config import Layout
from app.parallel import replicas
from app.parallel.sharded import Sharded

pytestmark = pytest.mark.ranks


def broadcast():
    """On a rank: what broadcasts sent, and what the variables are after each."""
    from app.training import setup

    topology, _ = setup.join(Layout())
    sent, send = [], replicas.hvd.broadcast
    replicas.hvd.broadcast = lambda x, *args, **kwargs: (
        sent.append(x.shape[0]) or send(x, *args, **kwargs)
    )
    replicas.GROUP_BYTES = 40
    same = tf.Variable([1.0, 2.0])
    own = tf.Variable(tf.fill([3, 2], float(topology.rank)))
    large = tf.Variable(tf.fill([11], float(topology.rank)))
    count = tf.Variable(topology.rank)
    shards = Sharded((tf.Variable([[0.0], [topology.rank]]), tf.Variable([[5.0], [6.0]])), 1)
    variables = [same, own, large, count, shards]

    def values():
        return [v.numpy().tolist() for v in variables], [sent.pop() for _ in range(len(sent))]

    replicas.broadcast(variables, 1)
    first = values()
    replicas.broadcast(variables)
    second = values()
    count.assign(7 + topology.rank)
    replicas.broadcast(variables)
    return first, second, values()


def test_variables_become_those_of_one_rank_and_what_all_have_is_not_sent(tmp_path):
    first, second, third = zip(*ranks.call(2, tmp_path, broadcast), strict=True)
    expected = [[1, 2], np.ones([3, 2]).tolist(), [1] * 11, 1, [[0, 5], [1, 6]]]
    # Groups of at most 40 bytes: same and own; large alone; the count; the shards.
    for values, sent in first:
        assert values == expected and sorted(sent) == [1, 4, 8, 11]
    for values, sent in second:
        assert values == expected and not sent
    for values, sent in third:
        assert values == [*expected[:3], 7, expected[4]] and sent == [1]
