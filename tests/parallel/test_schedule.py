import pytest

from app.parallel import schedule
from app.parallel.schedule import Task, orders

pytestmark = pytest.mark.fast

SHAPES = [("gpipe", 4, 1, 8), ("1f1b", 4, 1, 8), ("1f1b", 4, 1, 2), ("1f1b", 1, 1, 3),
          ("1f1b", 4, 2, 8), ("1f1b", 2, 3, 4)]  # fmt: skip


def simulate(tasks, parts):
    """Seconds until every task is done: a task takes one and waits for what it needs."""
    done: dict[Task, int] = {}
    clocks, places = [0] * len(tasks), [0] * len(tasks)
    while any(place < len(order) for place, order in zip(places, tasks, strict=True)):
        moved = False
        for stage, order in enumerate(tasks):
            if places[stage] == len(order):
                continue
            task = order[places[stage]]
            needs = []
            if task.kind == "F" and task.part:
                needs.append(Task("F", task.part - 1, task.micro_batch))
            if task.kind == "B":
                needs.append(Task("F", task.part, task.micro_batch))
            if task.kind == "B" and task.part < parts - 1:
                needs.append(Task("B", task.part + 1, task.micro_batch))
            if all(need in done for need in needs):
                clocks[stage] = max([clocks[stage], *(done[need] for need in needs)]) + 1
                done[task] = clocks[stage]
                places[stage] += 1
                moved = True
        assert moved, "deadlock"
    return max(clocks)


@pytest.mark.parametrize(("kind", "p", "c", "m"), SHAPES)
def test_every_task_once_in_the_order_of_the_micro_batches(kind, p, c, m):
    for stage, order in enumerate(orders(kind, p, c, m)):
        assert len(set(order)) == len(order) == 2 * c * m
        assert {task.part % p for task in order} == {stage}
        for part in range(stage, c * p, p):
            for direction in "FB":
                own = [t.micro_batch for t in order if (t.kind, t.part) == (direction, part)]
                assert own == list(range(m))  # the tree adds them up in this order


@pytest.mark.parametrize(("kind", "p", "c", "m"), SHAPES)
def test_the_time_is_the_formula_s(kind, p, c, m):
    # 2 C M tasks a stage, and the bubble: 2 (P - 1) tasks, each 1 / C of a stage's work.
    seconds = simulate(orders(kind, p, c, m), p * c)
    assert seconds == 2 * c * m + 2 * (p - 1)
    assert schedule.bubble(p, c, m) == pytest.approx(1 - 2 * c * m / seconds)


def test_1f1b_holds_no_more_than_its_depth():
    assert [schedule.most_alive(o) for o in orders("1f1b", 4, 1, 8)] == [4, 3, 2, 1]
    assert [schedule.most_alive(o) for o in orders("gpipe", 4, 1, 8)] == [8, 8, 8, 8]
