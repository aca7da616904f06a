"""Simple models beside a run's result, against counts by hand."""

import numpy as np
import pytest

from input import baselines
from input.tables import Table

pytestmark = pytest.mark.fast


def rows(*batches):
    return lambda: [tuple(map(np.array, batch)) for batch in batches]


def test_each_word_has_its_usual_case():
    train = rows(([[1, 2, 2, 2, 0]], [[0, 1, 1, 0, -1]]), ([[3, 4]], [[1, 1]]))
    test = rows(([[1, 2, 9, 0]], [[0, 0, 1, -1]]))  # 9 is new: as most tokens are, 1
    found = baselines.of_case(train, test, 3)
    assert found["accuracy"] == pytest.approx(2 / 3) and found["tokens"] == 3
    assert found["f1"] == pytest.approx(np.mean([2 / 3, 2 / 3]))


def test_pairs_of_words():
    train = rows(([[1, 2, 1, 2, 1, 3, 0]], [[2, 1, 2, 1, 3, -1, -1]]))
    test = rows(([[1, 9, 1]], [[2, 1, -1]]))
    found = baselines.of_next_words(train, test, 10)
    single = (np.bincount([2, 1, 2, 1, 3], minlength=10) + 1) / 15
    losses = [-np.log(0.5 * 2 / 3 + 0.5 * single[2]), -np.log(single[1])]
    assert found["loss"] == pytest.approx(np.mean(losses))
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(losses)))
    assert found["accuracy"] == 0.5 and found["tokens"] == 2


def test_numbers_of_a_table():
    found = Table("diabetes").open("").baseline()
    assert 35 < found["mae"] < 55 and 0.3 < found["r2"] < 0.6
    assert found["examples"] == 88
