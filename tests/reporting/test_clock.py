"""Seconds of a run: what is counted, and what a step of it took."""

import random
import statistics
from types import SimpleNamespace

import pytest

from app.reporting.clock import Clock


class Time:
    """The clock's own time, which passes when a test says so."""

    def __init__(self, monkeypatch):
        self.now = 1e6
        monkeypatch.setattr("app.reporting.clock.time", SimpleNamespace(monotonic=lambda: self.now))

    def step(self, clock, seconds):
        clock.start()
        self.now += seconds
        clock.stop()


@pytest.fixture
def clock_time(monkeypatch):
    return Time(monkeypatch)


def test_set_up_and_what_compiles_are_left_out(clock_time):
    clock = Clock()
    assert clock.typical() is None and clock.recent() is None
    clock_time.now += 100
    clock.begin()
    clock_time.step(clock, 30)
    assert clock.typical() == clock.recent() == 30  # nothing better is known
    for seconds in (2, 2, 9):
        clock_time.step(clock, seconds)
    clock_time.now += 5  # an evaluation
    assert (clock.seconds, clock.training) == (48, 43)
    assert clock.recent() == 2 and clock.typical() == pytest.approx(2, rel=0.005)
    clock.in_bursts = True
    assert clock.recent() == clock.typical() == pytest.approx(13 / 3)


@pytest.mark.parametrize("in_bursts", [False, True])
def test_attempts_are_one_run(clock_time, in_bursts):
    """Each goes on from what the one before had counted when it last saved."""
    taken = [random.Random(i).lognormvariate(-1, 0.5) for i in range(300)]
    counted = {}
    for attempt in range(3):
        clock = Clock()
        clock.in_bursts = in_bursts
        clock.resume(counted)
        clock_time.now += 1000  # set-up
        clock.begin()
        clock_time.step(clock, 60)
        for seconds in taken[attempt * 100 :][:100]:
            clock_time.step(clock, seconds)
        counted = clock.counted()
        clock_time.step(clock, 500)  # lost, and done again
    wanted = statistics.fmean(taken) if in_bursts else statistics.median(taken)
    clock.resume(counted)
    clock_time.now += 1000  # stands still until it begins
    assert clock.typical() == pytest.approx(wanted, rel=0.006)
    assert clock.seconds == pytest.approx(3 * 60 + sum(taken))
    assert clock.training == pytest.approx(clock.seconds)
    assert clock.counted() == counted


def test_a_step_costs_the_same_after_any_number_of_steps(clock_time):
    """Nothing is kept of each: no sum over all of them is taken at any."""
    clock, sizes = Clock(), []
    for _ in range(3):
        for i in range(2000):
            clock_time.step(clock, 1 + i % 7)
            clock.recent()
        kept = [v for v in vars(clock).values() if hasattr(v, "__len__")]
        sizes.append(sum(map(len, kept)))
    assert sizes == [7 + 10] * 3
