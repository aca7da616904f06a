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

ROUNDS = 3  # each figure is the median of the rounds; figures compared take turns
STEPS = 2  # timed in a round
WARM_STEPS = 2  # before them: they use up the batches that were read while another kind ran
RATE = 1e-6  # so small that weights stay where arithmetic is ordinary
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
    mine = where.micro_batches(where.size)
    kinds = {
        "bare step": whole_step(experiment, layout, state, mine, same),
        "full loop": whole_step(experiment, layout, state, mine, batches),
    }
    if where.size > 1:
        kinds["independent processes"] = lonely_step(experiment, state, same)
    speeds = measure(kinds, experiment.micro_batch)
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    totals = {n: [sum(replicas.each(v)) for v in values] for n, values in speeds.items()}
    if not where.is_chief:
        all_reduce(where)
        return
    print(
        f"{where.size} processes x {threads} threads, micro-batch {experiment.micro_batch}, "
        f"input {data.input_shape}, {experiment.precision}; medians of {ROUNDS} rounds of {STEPS}"
    )
    for name, values in totals.items():
        print(f"{name:24} {loop.median(values):8.2f} images/s")
    pairs = [("full loop", "bare step"), ("bare step", "independent processes")]
    for a, b in pairs[: where.size]:
        ratios = [x / y for x, y in zip(totals[a], totals[b], strict=True)]
        print(f"{a} / {b:21} {loop.median(ratios):8.3f}", flush=True)
    all_reduce(where)


def measure(kinds: dict[str, Callable[[], None]], images: int) -> dict[str, list[float]]:
    """Images a second of this process, a value a round; `images` in a step of any kind."""
    speeds: dict[str, list[float]] = {name: [] for name in kinds}
    for name, step in itertools.chain.from_iterable([kinds.items()] * ROUNDS):
        for _ in range(WARM_STEPS):  # the first of all compiles
            step()
        replicas.each(0)  # a barrier: all processes measure the same thing at the same time
        begin = time.perf_counter()
        for _ in range(STEPS):
            step()
        speeds[name].append(STEPS * images / (time.perf_counter() - begin))
    return speeds


def whole_step(
    experiment: Experiment,
    layout: Layout,
    state: State,
    mine: range,
    batches: Iterator[tuple[Any, ...]],
) -> Callable[[], None]:
    """A training step of the job."""
    step = Step(experiment, layout, state, mine)
    return lambda: step(0, batches, RATE)["loss"].numpy()


def lonely_step(
    experiment: Experiment, state: State, batches: Iterator[tuple[Any, ...]]
) -> Callable[[], None]:
    """A step that reduces with nobody: what an independent process would do."""
    alone = dataclasses.replace(experiment, global_batch=experiment.micro_batch)
    step = Step(alone, Layout(), state, range(1), is_alone=True)
    return lambda: step(0, batches, RATE)["loss"].numpy()


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
