"""A parameter server's ledger: integers only."""

import threading

import pytest

from app.parallel.ledger import Ledger

pytestmark = pytest.mark.fast


def test_a_ledger_counts_staleness_and_knows_what_is_missing():
    ledger = Ledger(range(4), None)
    assert [ledger.begin() for _ in range(3)] == [0, 1, 2]
    assert ledger.apply(1) == 0 and ledger.apply(2) == 1  # 0 is still computed
    assert ledger.missing() == [0]
    assert ledger.begin() == 3 and ledger.begin() is None
    assert ledger.missing() == [0]  # 3 is not applied, but nothing after it is
    assert ledger.apply(0) == 2 and ledger.apply(3) == 1
    assert ledger.missing() == [] and ledger.staleness == {0: 1, 1: 2, 2: 1}
    with pytest.raises(KeyError):
        ledger.apply(3)  # never twice


def test_a_run_that_goes_on_remembers_what_is_missing():
    # Saved after 100 steps, of which 97 and 98 were not: 99 to 101 were applied ahead of them.
    ledger = Ledger([97, 98, *range(102, 106)], None, furthest=101)
    assert ledger.missing() == [97, 98]  # begun or not
    assert ledger.begin() == 97 and ledger.missing() == [97, 98]
    ledger.apply(97)
    assert ledger.missing() == [98]
    assert [ledger.begin(), ledger.begin()] == [98, 102]
    ledger.apply(102)
    assert ledger.missing() == [98]
    ledger.apply(98)
    assert ledger.missing() == []


def test_a_bound_holds_back_who_is_ahead():
    ledger = Ledger([2, 5, 6, 7, 8], 4)  # of a run that went on
    assert [ledger.begin() for _ in range(3)] == [2, 5, 6]
    begun = []
    waiting = threading.Thread(target=lambda: begun.append(ledger.begin()))
    waiting.start()
    ledger.apply(5), ledger.apply(6)
    waiting.join(0.2)
    assert waiting.is_alive() and not begun  # 7 would be 5 ahead of 2
    ledger.apply(2)
    waiting.join(5)
    assert begun == [7]
    ledger.close()
    assert ledger.begin() is None
