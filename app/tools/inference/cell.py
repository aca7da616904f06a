"""Measures one layout of `benchmark inference`, for each size of a batch.

From what clients have, in memory, to probabilities, as `predict` computes them: every process by
itself, as many batches at once as it has cores for each stage.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from app.inference.forward import Forward
from app.parallel import replicas
from app.parallel.topology import Topology
from app.training import trained
from app.training.opening import Opened
from input.raw import Limits

ROUNDS = 3
SECONDS = 2.0  # of a round, about
FEWEST, MOST = 8, 400  # batches of a round, a lane


def main(opened: Opened, where: Topology, lanes: int, sizes: Sequence[int], output: Path) -> None:
    """Writes a row a batch size, on rank 0.

    Raises:
        UsageError: data that do not say what clients have.
    """
    trained.must_be_servable(opened.data)
    forward = Forward(opened.state, opened.data.input_spec, lanes)
    rows = [measured(opened, forward, where, size) for size in sizes]
    if where.is_chief:
        output.write_text(json.dumps(rows) + "\n")


def measured(opened: Opened, forward: Forward, where: Topology, size: int) -> dict[str, Any]:
    """Examples a second of all processes, and percentiles of a batch's seconds."""
    data = opened.data
    raws = data.held_out.fetch([i % data.num_evaluation for i in range(4 * size)])[0]
    batches = [tf.constant(raws[i * size : (i + 1) * size]) for i in range(4)]
    preprocess = tf.function(
        lambda raw: data.preprocess(raw, Limits()),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )

    def run(count: int) -> tuple[float, list[float]]:
        began: dict[int, float] = {}
        seconds: list[float] = []

        def read(m: int) -> tf.Tensor:
            began[m] = time.perf_counter()
            return preprocess(batches[m % 4])

        begin = time.perf_counter()
        forward(count, read, lambda m, y: seconds.append(time.perf_counter() - began[m]))
        return time.perf_counter() - begin, seconds

    run(4 * forward.lanes)  # every length of a text is met once
    lasted, _ = run(4 * forward.lanes)
    wanted = round(SECONDS / lasted * 4)
    each = int(min(replicas.each(wanted)))
    count = min(max(each, FEWEST), MOST) * forward.lanes
    speeds, latencies = [], []
    for _ in range(ROUNDS):
        replicas.each(0)  # all processes at the same time
        lasted, seconds = run(count)
        speeds.append(sum(replicas.each(count * size / lasted)))
        latencies.append(replicas.all_gather(tf.constant(seconds), "latencies").numpy())
    p50, p90, p99 = np.percentile(np.concatenate(latencies), [50, 90, 99])
    return {
        "batch_size": size, "examples_per_second": statistics.median(speeds),
        "p50_ms": 1e3 * p50, "p90_ms": 1e3 * p90, "p99_ms": 1e3 * p99,
        "batches": count * ROUNDS * where.size,
    }  # fmt: skip
