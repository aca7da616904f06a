"""Agreement between ranks, as one rank sees it."""

import numpy as np
import pytest

from app.errors import DataError, UsageError
from app.parallel import replicas
from app.training import agreement, kernels
from input import InputError
from models import ModelError

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(InputError, DataError), (ModelError, UsageError), (UsageError, UsageError)],
)
def test_what_fails_on_one_rank_fails_on_all(raised, expected):
    def fail():
        raise raised("the reason")

    with pytest.raises(expected, match="the reason") as caught:
        agreement.run_on_all_ranks(fail)
    assert caught.value.everywhere and caught.value.speaker
    assert agreement.run_on_all_ranks(lambda: 7) == 7


def test_a_bug_is_not_turned_into_an_error_of_the_user():
    with pytest.raises(ZeroDivisionError):
        agreement.run_on_all_ranks(lambda: 1 // 0)


def test_values_that_differ_from_rank_0_are_listed(monkeypatch):
    theirs = {"seed": 1, "model": {"depth": 18, "width": 4}}
    monkeypatch.setattr(replicas, "broadcast_json", lambda ours: theirs)
    agreement.require_same("experiment", theirs)
    ours = {"seed": 2, "model": {"depth": 50, "width": 4}}
    with pytest.raises(UsageError) as raised:
        agreement.require_same("experiment", ours, "Do it")
    assert str(raised.value) == (
        "this rank has another experiment than rank 0: model.depth: 50 here, 18 there; "
        "seed: 2 here, 1 there. Do it."
    )


def test_without_exact_only_the_library_of_kernels_must_agree(monkeypatch):
    monkeypatch.setattr(kernels, "names", lambda: {"library": "oneDNN", "instructions": "AVX2"})
    theirs = {"library": "oneDNN", "instructions": "AVX512_CORE"}

    def broadcast_json(ours):
        return {name: theirs[name] for name in ours}

    monkeypatch.setattr(replicas, "broadcast_json", broadcast_json)
    agreement.require_same_kernels(exact=False)
    with pytest.raises(UsageError, match="instructions: AVX2 here, AVX512_CORE there"):
        agreement.require_same_kernels(exact=True)


def test_a_vote_names_what_any_rank_signals(monkeypatch):
    signals = {"stop": lambda: False, "save": lambda: True, "change": lambda: False}
    assert agreement.vote(signals) == {"save"}
    monkeypatch.setattr(replicas, "all_reduce_numpy", lambda own, _: own + np.array([2, 0, 0]))
    assert agreement.vote(signals) == {"stop", "save"}
