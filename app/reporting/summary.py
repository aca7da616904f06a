"""Summarizes a run for people: what runs where as it begins, its result as it ends."""

from typing import Any

import tensorflow as tf

from app.config import Experiment, Layout
from app.parallel import schedule
from app.parallel.topology import Topology
from app.training import kernels
from app.training.state import State
from input.batches import DataSet

LARGE_BUBBLE = 0.35  # of a stage's time, with fewer micro-batches than about twice the stages


def opening(
    experiment: Experiment, layout: Layout, data: DataSet, state: State, first: int, total: int
) -> str:
    """Returns the first lines of a run: what runs where."""
    parameters = sum(v.shape.num_elements() for v in state.trainable)
    counts = [
        len(Topology(rank, layout.processes).micro_batches(experiment.num_micro_batches))
        for rank in range(layout.processes)
    ]
    most, least = max(counts), min(counts)
    each = f"{most} each" if most == least else f"{most} to {least} each"
    threads = _count(tf.config.threading.get_intra_op_parallelism_threads(), "thread")
    processes = f"{_count(layout.processes, 'process', 'es')} ({each}), {threads} per process"
    where = (
        parameter_server_job(experiment, layout)
        if layout.workers
        else f"{processes}, kernels of {kernels.text(kernels.names())}"
    )
    cut = f"\n{pipeline(layout, state, least)}" if layout.devices > 1 else ""
    return (
        f"{parameters:,} parameters, {data.num_train:,} training and {data.num_evaluation:,} "
        f"{data.evaluation_split} examples, {experiment.precision}"
        f"{', exact' if layout.exact else ''}\n"
        f"global batch {experiment.global_batch} = {experiment.num_micro_batches} micro-batches of "
        f"{experiment.micro_batch} on {where}, steps {first + 1} to {total}{cut}"
    )


def parameter_server_job(experiment: Experiment, layout: Layout) -> str:
    """Describes the tasks of a parameter-server job, and what a worker does."""
    staleness = experiment.update.staleness
    if staleness == 0:
        how = "share each step"
    else:
        ahead = "any number of" if staleness is None else f"at most {staleness}"
        how = f"take a step each, {ahead} steps ahead of the oldest that is not applied"
    servers = _count(layout.parameter_servers, "parameter server")
    return f"{_count(layout.workers, 'worker')} that {how}, weights on {servers}"


def closing(result: dict[str, Any], metric: str) -> str:
    """Returns the last lines of a run, with its best-known metric."""
    split, metrics = next(iter(result["metrics"].items()))
    state = "done" if result["finished"] else "stopped, to be continued,"
    speed = result["examples_per_second"]
    baseline = result["baseline"]
    compared = ""
    if baseline and ("error" in baseline or metric in baseline):
        figure = baseline.get("error") or f"{baseline[metric]:.4f}"
        compared = f" ({baseline['name']}: {figure})"
    return (
        f"{state} after {result['steps']} steps in {result['seconds']:.0f} s: {split} {metric} "
        f"{metrics[metric]:.4f}{compared}" + (f", {speed:.1f} examples/s" if speed else "") + "\n"
        f"weights {result['weights_sha256'][:16]}, everything written to {result['workdir']}"
    )


def pipeline(layout: Layout, state: State, micro_batches: int) -> str:
    """Describes the cut and its bubble, and how to shorten one that is probably a mistake."""
    idle = schedule.bubble(layout.stages, layout.chunks, micro_batches)
    few = f" more micro-batches than {micro_batches} a process would shorten it"
    stages = f"{layout.stages} stage{'s' * (layout.stages > 1)}"
    split = f" of {layout.tensor} devices" if layout.tensor > 1 else ""
    return (
        f"{stages}{split} a process, {layout.schedule}, blocks "
        f"{'+'.join(map(str, state.placement.sizes))}, bubble {idle:.0%}"
        f"{':' + few if idle > LARGE_BUBBLE else ''}"
    )


def stages(table: list[dict[str, Any]]) -> list[str]:
    """Formats the table of a step's parts and devices, sizes in MB."""
    if not table:
        return []
    lines = [
        f"{'stage':5} {'device':16} {'blocks':28} {'parameters':>11} {'weights':>8} "
        f"{'optimizer':>9} {'alive':>5} {'activations':>11}"
    ]
    for row in table:
        device = short(row["device"])
        sizes = [row[f"{name}_bytes"] / 1e6 for name in ("weight", "optimizer", "activation")]
        lines.append(
            f"{row['stage']:5} {device:16} {row['blocks']:28} {row['parameters']:11,} "
            f"{sizes[0]:8.1f} {sizes[1]:9.1f} {row['micro_batches_alive']:5} {sizes[2]:11.1f}"
        )
    return [*lines, "(MB; activations of the most micro-batches alive at once)"]


def _count(number: int, name: str, plural: str = "s") -> str:
    return f"{number} {name}{plural if number > 1 else ''}"


def short(device: str) -> str:
    """Shortens a device's name: `CPU:1` of this process, `server 0 CPU:0` of a stage server."""
    place, _, name = device.partition("/device:")
    server = place.rpartition(":")[2]
    return f"server {server} {name}" if "/job:stage" in place else name
