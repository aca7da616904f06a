"""Times all-reduces of numbers whose sum is known; run by the ranks of the doctor's trial too."""

import json
import statistics
import time

import numpy as np
import tensorflow as tf

from app.parallel import replicas
from app.parallel.topology import Topology
from app.recovery import heartbeat

SIZES = (2**12, 2**24)  # bytes: 4 KiB, whose time is latency; 16 MiB, whose time is bandwidth
ROUNDS = 10  # that are timed, after one that is not


def main() -> None:
    """Joins the job of the doctor's trial; rank 0 prints a line of JSON that `trial` reads."""
    heartbeat.beat("joining")
    topology = replicas.join()
    heartbeat.beat("reducing", rank=topology.rank)
    result = reduce(topology)
    if topology.is_chief:
        print(json.dumps(result), flush=True)


def reduce(topology: Topology) -> dict[str, float]:
    """Returns the number of ranks, of elements with a wrong sum, and median seconds by size."""
    found = {str(size): measure(topology, size) for size in SIZES}
    wrong = sum(count for _, count in found.values())
    # The sum over ranks may be wrong itself: this rank's own count counts too.
    worst = max(float(wrong), *replicas.all_gather_scalar(wrong))
    seconds = {size: middle for size, (middle, _) in found.items()}
    return {"ranks": float(topology.size), **seconds, "wrong": worst}


def measure(topology: Topology, size: int) -> tuple[float, int]:
    """Returns the median seconds of an all-reduce of `size` bytes, and the number of wrong sums."""
    pattern = np.arange(size // 4, dtype=np.float32) % 64  # exact in any order of summation
    own = tf.constant(pattern * (topology.rank + 1))
    whole = pattern * (topology.size * (topology.size + 1) // 2)
    seconds, wrong = [], 0
    for _ in range(1 + ROUNDS):
        replicas.barrier()
        begin = time.perf_counter()
        total = replicas.all_reduce(own, f"timed{size}").numpy()
        seconds.append(time.perf_counter() - begin)
        wrong += int(np.sum(total != whole))
    return statistics.median(seconds[1:]), wrong
