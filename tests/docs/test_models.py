"""Runs the layer that docs/models.md splits into shards."""

import re

import numpy as np
import pytest
import tensorflow as tf
from ranks import ROOT

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("shards", [1, 3])
def test_shards_add_up(shards):
    text = (ROOT / "docs" / "models.md").read_text()
    names: dict = {}
    exec(re.search(r"```python\n(def mlp\(.*?)```", text, re.DOTALL)[1], names)
    layer = names["mlp"](width=4, columns=7, shards=shards)
    x = tf.ones([2, 4])
    y = layer(x)
    each = [shard(x) for shard in layer.shards]
    assert len(each) == shards
    np.testing.assert_allclose(y, np.sum(each, 0), rtol=1e-5, atol=1e-6)
