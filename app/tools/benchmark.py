"""Implements `app benchmark`: measures training on this machine, as ratios within one run.

step        examples a second of the bare compiled step, on the same batch again and again
loop        the same with reading, decoding and augmenting
processes   under horovodrun: against the same processes that train independently
all-reduce  under horovodrun: seconds and bus bandwidth by message size
stages      with --stages=P or --tensor=T: P x T devices against one, and start-up by
            micro-batches
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from app.config import MEASURED_MICRO_BATCHES, Experiment, Layout
from app.parallel import replicas
from app.parallel.topology import Topology, bus_bandwidth, cores
from app.strategies import partition
from app.tools import all_reduce, rounds
from app.tools.peers.cases import RATE
from app.training.batch_stream import training_batches
from app.training.data import open_data
from app.training.state import State
from app.training.step import SingleStageStep, make_step

ROUNDS = 3  # a figure is the median of the rounds; figures that are compared take turns
STEPS = 2  # timed in a round
WARM_STEPS = 2  # before them
# Of a pipeline's step: a number that is timed, and a larger one that should be traced as fast.
MICRO_BATCHES = (MEASURED_MICRO_BATCHES, 8 * MEASURED_MICRO_BATCHES)
SIZES = [2**p for p in range(12, 28, 3)]  # bytes, 4 KiB to 128 MiB


# By name, a step and a function that returns its batches of a round.
Kinds = Mapping[str, tuple[Any, Callable[[], Iterator[Any]]]]


def main(experiment: Experiment, layout: Layout, topology: Topology, data_dir: str) -> None:
    """Prints a line for each figure, on rank 0.

    The experiment's micro-batch is kept; a process has one of them in a step.
    """
    if layout.devices > 1:
        return pipeline(experiment, layout, topology, data_dir)
    experiment = dataclasses.replace(
        experiment, global_batch=experiment.micro_batch * topology.size, steps=10**6, epochs=None
    )
    data = open_data(experiment, data_dir)
    state = State.of(experiment, data)
    single = dataclasses.replace(experiment, global_batch=experiment.micro_batch)
    joint = SingleStageStep(experiment, layout, state, topology.micro_batches(topology.size))
    independent = SingleStageStep(single, Layout(), state, range(1))

    def read() -> Iterator[tuple[Any, ...]]:
        # Opened in each round, so that no batch is read while something else is measured.
        return training_batches(experiment, data, topology, range(WARM_STEPS + STEPS))

    same = next(read())
    kinds = {
        "bare step": (joint, lambda: itertools.repeat(same)),
        "full loop": (joint, read),
        "independent processes": (independent, lambda: itertools.repeat(same)),
    }
    if topology.size == 1:
        del kinds["independent processes"]
    totals = measure(kinds, experiment.micro_batch)
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    if not topology.is_chief:
        return print_all_reduces(topology)
    print(
        f"{topology.size} processes x {threads} threads, micro-batch {experiment.micro_batch}, "
        f"input {tuple(data.input_spec.shape[1:])}, {experiment.precision}; "
        f"medians of {ROUNDS} rounds of {STEPS}"
    )
    for name, values in totals.items():
        print(f"{name:24} {statistics.median(values):8.2f} examples/s")
    for a, b in [("full loop", "bare step"), ("bare step", "independent processes")]:
        if a not in totals or b not in totals:
            continue
        ratios = [x / y for x, y in zip(totals[a], totals[b], strict=True)]
        print(f"{a} / {b:21} {statistics.median(ratios):8.3f}", flush=True)
    print_all_reduces(topology)


def pipeline(experiment: Experiment, layout: Layout, topology: Topology, data_dir: str) -> None:
    """Compares one device with several in the same process, each with as many cores.

    The ideal speed-up is T M P / (M + P - 1): all devices, less the bubble. The single device is
    confined to its part of the cores: operators that do not depend on each other would use all
    (one stage of an encoder was seen to keep 1.4 of 2 cores busy with one thread an operator).
    """
    own = cores(os.sched_getaffinity(0), topology.local_size, topology.local_rank)
    few = own[: max(1, len(own) // layout.devices)]
    micro_batch, stages = experiment.micro_batch, layout.stages
    data = open_data(experiment, data_dir)
    one = dataclasses.replace(layout, stages=1, tensor=1, chunks=1, cut=(), servers=())
    costs = None if layout.cut else partition.measure(experiment, topology, data)
    batch: Any = None
    kinds, first = {}, {}
    for count in MICRO_BATCHES:
        wide = dataclasses.replace(experiment, global_batch=count * micro_batch * topology.size)
        mine = topology.micro_batches(wide.num_micro_batches)
        batch = batch or next(training_batches(wide, data, topology, range(1)))
        for name, some in (("1 device", one), (f"{layout.devices} devices", layout)):
            placement = partition.place(wide, some, topology, data, costs)
            state = State.of(wide, data, placement)
            step = make_step(wide, some, state, mine, range(1))
            same = itertools.repeat(batch)
            first[name, count] = take_steps(1, step, same) - take_steps(1, step, same)
            if count == MICRO_BATCHES[0]:
                confined = functools.partial(on_cores, few if some.devices == 1 else own, step)
                kinds[name] = (confined, functools.partial(itertools.repeat, batch))
    m = MICRO_BATCHES[0]
    totals = measure(kinds, m * micro_batch)
    if not topology.is_chief:
        return
    print(
        f"{topology.size} processes, M = {m} micro-batches of {micro_batch} each, "
        f"{layout.schedule}, {stages} stages x {layout.tensor} devices of {len(few)} cores, blocks "
        f"{'+'.join(map(str, placement.sizes))}; medians of {ROUNDS} rounds of {STEPS}"
    )
    for name, values in totals.items():
        print(f"{name:24} {statistics.median(values):8.2f} examples/s")
    serial, parallel = totals.values()
    speedup = statistics.median([b / a for a, b in zip(serial, parallel, strict=True)])
    ideal = layout.tensor * m * stages / (m + stages - 1)
    print(f"speed-up {speedup:.3f} of the ideal {ideal:.3f}: {speedup / ideal:.3f}")
    for (name, count), seconds in first.items():
        print(f"tracing, {name}, M = {count:3d} {seconds:8.2f} s")


def on_cores(cores: Sequence[int], step: Callable[..., Any], *arguments: Any) -> Any:
    """Takes a step with all threads of this process confined to these cores."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # the thread has just ended
            os.sched_setaffinity(int(thread), cores)
    return step(*arguments)


def measure(kinds: Kinds, examples: int) -> dict[str, list[float]]:
    """Returns examples a second of all processes, by name and round; the kinds take turns.

    Args:
        kinds: by name, a step and a function that returns its batches of a round.
        examples: of this process in a step.
    """

    def speed(name: str, turn: int) -> float:
        step, read = kinds[name]
        batches = read()
        take_steps(WARM_STEPS, step, batches)  # the first of all compiles
        replicas.barrier()  # all processes measure the same kind at the same time
        own = STEPS * examples / take_steps(STEPS, step, batches)
        return sum(replicas.all_gather_scalar(own))

    return rounds.by_turns(kinds, ROUNDS, speed)


def take_steps(count: int, step: Callable[..., Any], batches: Iterator[Any]) -> float:
    """Takes steps; returns how many seconds they took."""
    begin = time.perf_counter()
    for _ in range(count):
        step(0, batches, RATE)["loss"].numpy()
    return time.perf_counter() - begin


def print_all_reduces(topology: Topology) -> None:
    """Prints the median time of an all-reduce, and its bus bandwidth, by size."""
    for size in SIZES if topology.size > 1 else []:
        seconds, _ = all_reduce.measure(topology, size)
        bandwidth = bus_bandwidth(topology.size, size, seconds)
        if topology.is_chief:
            print(
                f"all-reduce {size / 2**10:9.0f} KiB {seconds * 1e3:8.2f} ms "
                f"{bandwidth / 1e9:8.3g} GB/s bus"
            )
