"""Measures one layout of `benchmark inference`, for each batch size.

It is timed from what clients have, in memory, to probabilities, as `predict` computes them: every
process by itself, with as many batches at once as it has cores for each stage.
"""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from app.errors import UsageError
from app.inference import clients
from app.inference.forward import Forward, preprocessor
from app.parallel import replicas
from app.parallel.topology import Topology
from app.training.setup import Setup
from input.raw import Limits

ROUNDS = 3
SECONDS = 2.0  # of a round, about
MIN_BATCHES, MAX_BATCHES = 8, 400  # of a round, a lane


def main(setup: Setup, topology: Topology, lanes: int, sizes: Sequence[int], output: Path) -> None:
    """Writes a row for each batch size, on rank 0.

    Raises:
        UsageError: the data do not say what clients have.
    """
    clients.require(setup.data, setup.experiment.objective)
    if not setup.data.kind:
        raise UsageError(
            f"benchmark inference measures images and texts, not {type(setup.data).__name__}, "
            "whose clients send tensors: use `app evaluate` on it."
        )
    forward = Forward(setup.state, setup.data.input_spec, lanes, setup.experiment.objective)
    rows = [measure(setup, forward, topology, size) for size in sizes]
    if topology.is_chief:
        output.write_text(json.dumps(rows) + "\n")


def measure(setup: Setup, forward: Forward, topology: Topology, size: int) -> dict[str, Any]:
    """Returns examples a second of all processes, and percentiles of a batch's latency."""
    data = setup.data
    raws = data.held_out.fetch([i % data.num_evaluation for i in range(4 * size)])[0]
    batches = [tf.constant(raws[i * size : (i + 1) * size]) for i in range(4)]
    preprocess = preprocessor(data, Limits())

    def run(count: int) -> tuple[float, list[float]]:
        began: dict[int, float] = {}
        seconds: list[float] = []

        def read(m: int) -> tf.Tensor:
            began[m] = time.perf_counter()
            return preprocess(batches[m % 4])

        begin = time.perf_counter()
        forward(count, read, lambda m, y: seconds.append(time.perf_counter() - began[m]))
        return time.perf_counter() - begin, seconds

    run(4 * forward.lanes)  # compiles for every length of a text
    lasted, _ = run(4 * forward.lanes)
    wanted = round(SECONDS / lasted * 4)
    each = int(min(replicas.all_gather_scalar(wanted)))
    count = min(max(each, MIN_BATCHES), MAX_BATCHES) * forward.lanes
    speeds, latencies = [], []
    for _ in range(ROUNDS):
        replicas.barrier()  # all processes at the same time
        lasted, seconds = run(count)
        speeds.append(sum(replicas.all_gather_scalar(count * size / lasted)))
        latencies.append(replicas.all_gather(tf.constant(seconds), "latencies").numpy())
    p50, p90, p99 = np.percentile(np.concatenate(latencies), [50, 90, 99])
    return {
        "batch_size": size, "examples_per_second": statistics.median(speeds),
        "p50_ms": 1e3 * p50, "p90_ms": 1e3 * p90, "p99_ms": 1e3 * p99,
        "batches": count * ROUNDS * topology.size,
    }  # fmt: skip
