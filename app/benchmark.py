"""`app benchmark`: what this machine gives, as ratios measured in one run.

    step        images a second of the bare compiled step, on one batch that stays
    loop        the same with reading, decoding and augmenting
    processes   under horovodrun: against the same processes at work without a job
    all-reduce  seconds and bus bandwidth by message size

Run it with plain Python for the first two, under horovodrun for the rest too.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from app.config import Experiment, Layout
from app.parallel import replicas
from app.parallel.topology import Topology
from app.training import loop
from app.training.state import State
from app.training.step import Step

ROUNDS = 5  # each figure is the median of the rounds; figures compared take turns
STEPS = 3  # a round
SIZES = [2**p for p in range(12, 28, 3)]  # bytes, 4 KiB to 128 MiB


def main(experiment: Experiment, layout: Layout, where: Topology, data_dir: str) -> None:
    """Prints a line a figure, on rank 0.

    The experiment's micro-batch is kept, one for each process and step.
    """
    experiment = dataclasses.replace(
        experiment, global_batch=experiment.micro_batch * where.size, steps=10**6, epochs=None
    )
    data = loop.open_data(experiment, layout, data_dir)
    state = State(experiment, data.input_shape, data.num_classes)
    batches = loop.training_batches(experiment, data, where, 0, 10**6)
    same = itertools.repeat(next(batches))
    speeds = measure(
        {
            "step": run_steps(experiment, layout, state, where.micro_batches(where.size), same),
            "loop": run_steps(experiment, layout, state, where.micro_batches(where.size), batches),
        }
        | ({"alone": run_alone(experiment, state, same)} if where.size > 1 else {})
    )
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    totals = {n: [sum(replicas.each(v)) for v in values] for n, values in speeds.items()}
    if not where.is_chief:
        all_reduce(where)
        return
    print(
        f"{where.size} processes x {threads} threads, micro-batch {experiment.micro_batch}, "
        f"input {data.input_shape}, {experiment.precision}; medians of {ROUNDS} rounds of {STEPS}"
    )
    names = {"step": "bare step", "loop": "full loop", "alone": "independent processes"}
    for name, values in totals.items():
        print(f"{names[name]:24} {loop.median(values):8.2f} images/s")
    pairs = [("loop", "step")] + ([("step", "alone")] if where.size > 1 else [])
    for a, b in pairs:
        ratios = [x / y for x, y in zip(totals[a], totals[b], strict=True)]
        print(f"{names[a]} / {names[b]:12} {loop.median(ratios):8.3f}")
    all_reduce(where)


def measure(runs: dict[str, Callable[[], int]]) -> dict[str, list[float]]:
    """Images a second of this process, a value a round; the runs take turns."""
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # compiles
    for name, run in itertools.chain.from_iterable([runs.items()] * ROUNDS):
        replicas.each(0)  # a barrier: all processes measure the same thing at the same time
        begin = time.perf_counter()
        images = run()
        speeds[name].append(images / (time.perf_counter() - begin))
    return speeds


def run_steps(
    experiment: Experiment,
    layout: Layout,
    state: State,
    mine: range,
    batches: Iterator[tuple[Any, ...]],
) -> Callable[[], int]:
    """A round of whole training steps."""
    step = Step(experiment, layout, state, mine)

    def run() -> int:
        for s in range(STEPS):
            step(s, batches, 1e-6)["loss"].numpy()
        return STEPS * len(mine) * experiment.micro_batch

    return run


def run_alone(
    experiment: Experiment, state: State, batches: Iterator[tuple[Any, ...]]
) -> Callable[[], int]:
    """A round of steps that reduce with nobody: what an independent process would do."""
    alone = dataclasses.replace(experiment, global_batch=experiment.micro_batch)
    step = Step(alone, Layout(), state, range(1), is_alone=True)

    def run() -> int:
        for s in range(STEPS):
            step(s, batches, 1e-6)["loss"].numpy()
        return STEPS * experiment.micro_batch

    return run


def all_reduce(where: Topology) -> None:
    """Median seconds of an all-reduce; bus bandwidth is 2 (n - 1) / n x bytes / seconds."""
    if where.size == 1:
        return
    for size in SIZES:
        tensor = tf.ones([size // 4])
        seconds = []
        for _ in range(11):
            replicas.each(0)
            begin = time.perf_counter()
            replicas.all_reduce(tensor, f"benchmark{size}").numpy()
            seconds.append(time.perf_counter() - begin)
        middle = loop.median(seconds[1:])
        bandwidth = 2 * (where.size - 1) / where.size * size / middle
        if where.is_chief:
            print(
                f"all-reduce {size / 2**10:9.0f} KiB {middle * 1e3:8.2f} ms {bandwidth / 1e9:6.2f} "
                "GB/s bus"
            )
