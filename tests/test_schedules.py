"""Each schedule's numbers, the warm-up before it, and its bounds."""

import dataclasses

import pytest

from app.cli import validation
from app.config import Layout, Optimization
from app.errors import UsageError
from app.experiments import resnet50_imagenet
from app.schedules import Constant, Cosine, Linear, Steps

pytestmark = pytest.mark.fast


def rates(schedule, steps, warmup_epochs=1.0, total=50):
    """Of these steps: 10 of them an epoch, `total` the run; the peak is 0.2."""
    rule = Optimization(
        schedule=schedule, learning_rate=0.1, reference_batch=5, warmup_epochs=warmup_epochs
    )
    return [rule.rate_at(step, 10, 100, total) for step in steps]


def test_goyal_schedule():
    e = resnet50_imagenet()
    n = 1_281_167

    def rate(epoch):
        return e.optimization.rate_at(int(epoch * n / 8192), 8192, n, e.total_steps(n))

    assert rate(0) == pytest.approx(3.2 * 8192 / (5 * n))
    assert rate(2.5) == pytest.approx(1.6, rel=0.01)
    assert [rate(x) for x in (6, 29, 31, 61, 81)] == pytest.approx([3.2, 3.2, 0.32, 0.032, 0.0032])


@pytest.mark.parametrize("schedule", [Constant(), Cosine(), Linear(), Steps(decay_epochs=(2,))])
def test_warm_up_rises_evenly_to_the_peak(schedule):
    # Of its 10 steps the last has the peak, and so has the first after it.
    assert rates(schedule, range(11)) == pytest.approx([0.02 * (s + 1) for s in range(10)] + [0.2])
    # It ends within a step: that one has the peak already.
    assert rates(schedule, range(3), warmup_epochs=0.25) == pytest.approx([0.08, 0.16, 0.2])
    assert rates(schedule, [0], warmup_epochs=0) == [0.2]
    # Longer than the run: the peak is never reached.
    assert rates(schedule, [0, 49], warmup_epochs=10) == pytest.approx([0.002, 0.1])


def test_constant():
    assert rates(Constant(), [10, 30, 49]) == [0.2, 0.2, 0.2]


def test_linear_falls_from_the_end_of_warm_up_to_the_end_of_the_run():
    assert rates(Linear(), [10, 20, 30, 49, 50]) == pytest.approx([0.2, 0.15, 0.1, 0.005, 0])
    assert rates(Linear(), [0, 25, 49], warmup_epochs=0) == pytest.approx([0.2, 0.1, 0.004])
    assert rates(Linear(), [60]) == [0]  # after the end


def test_cosine_falls_slowly_at_both_ends():
    expected = [0.2, 0.2 * 0.8535533905932737, 0.1, 0.2 * 0.14644660940672627, 0]
    assert rates(Cosine(), [10, 20, 30, 40, 50]) == pytest.approx(expected)
    assert rates(Cosine(), [0, 25], warmup_epochs=0) == pytest.approx([0.2, 0.1])
    assert rates(Cosine(), [60]) == [0]


def test_steps_drop_as_an_epoch_begins():
    schedule = Steps(decay_epochs=(2, 3.5), decay_factor=0.5)
    assert rates(schedule, [10, 19, 20, 34, 35, 49]) == [0.2, 0.2, 0.1, 0.1, 0.05, 0.05]
    assert rates(Steps(decay_epochs=()), [49]) == [0.2]


def test_the_schedule_counts_examples():
    rule = Optimization(warmup_epochs=1, schedule=Cosine())
    # The same epoch at twice the batch: twice the rate, by linear scaling.
    small = rule.rate_at(50, 100, 1000, 100)
    assert rule.rate_at(25, 200, 1000, 50) == pytest.approx(2 * small)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Steps(decay_factor=0.0), "decay_factor must be above 0 and finite, not 0.0."),
        (Steps(decay_factor=float("nan")), "decay_factor must be above 0 and finite, not nan."),
        (Steps(decay_epochs=(3, -1.0)), "decay_epochs must be at least 0 and finite, not -1.0."),
        (Steps(decay_epochs=(3, "4")), "decay_epochs must be of type tuple[float, ...], not "),
        ("cosine", "schedule must be an object such as Constant(), Cosine(), Linear(), Steps(), "),
    ],
)
def test_each_number_is_kept_to_its_bounds(tiny, schedule, message):
    rules = Optimization(schedule=schedule)
    with pytest.raises(UsageError) as caught:
        validation.validate(dataclasses.replace(tiny, optimization=rules), Layout())
    assert str(caught.value).startswith(f"optimization.{message}")
