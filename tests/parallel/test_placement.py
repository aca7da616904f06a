import itertools

import pytest

from app.parallel.placement import Placement, balanced

pytestmark = pytest.mark.fast


def slowest(times, cut):
    bounds = list(itertools.accumulate(cut, initial=0))
    return max(sum(times[a:b]) for a, b in itertools.pairwise(bounds))


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 7])
def test_no_cut_is_faster(parts):
    times = [5.0, 1.0, 1.0, 4.0, 2.0, 2.0, 3.0]
    cut = balanced(times, [1] * 7, parts)
    assert sum(cut) == 7 and len(cut) == parts and min(cut) >= 1
    every = (c for c in itertools.product(range(1, 8), repeat=parts) if sum(c) == 7)
    assert slowest(times, cut) == min(slowest(times, c) for c in every)


def test_of_equally_fast_cuts_the_smallest():
    # The dear block at the end leaves the first bound free: memory decides.
    assert balanced([1.0, 1.0, 1.0, 9.0], [10, 10, 1, 1], 3) == (1, 2, 1)


def test_chunks_go_round_the_stages():
    placement = Placement((("a",), ("b",)), (2, 1, 1, 2))
    assert [(run.start, run.stop, d) for run, (d,) in placement.runs()] == [
        (0, 2, "a"), (2, 3, "b"), (3, 4, "a"), (4, 6, "b"),
    ]  # fmt: skip
