"""Writes a run's result: result.json, and in it the simple model that the run is compared with."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app import config
from app.config import Experiment, Layout
from app.errors import PreemptedError
from app.parallel import replicas
from app.recovery import atomic_file, heartbeat, preemption
from app.reporting.clock import Clock
from app.training import kernels
from app.training.setup import Setup
from app.training.strategy import is_local
from input.batches import DataSet

POLL = 1.0  # seconds between heartbeats at the baseline


def compose(
    setup: Setup, layout: Layout, clock: Clock, done: int, found: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the result after `done` steps, the same on every rank but for what only rank 0 found.

    Args:
        setup: experiment and state.
        layout: of the last trainer.
        clock: of the run.
        done: steps.
        found: metrics by split, the table of stages, bytes that were sent.
    """
    experiment, state, each = setup.experiment, setup.state, clock.typical()
    return {
        "experiment": config.as_dict(experiment),
        "layout": config.as_dict(layout),
        "kernels": kernels.names(),
        "changes_numbers": changes_numbers(experiment, layout, int(state.skips)),
        "steps": done,
        "finished": done >= setup.total,
        **found,
        "baseline": None,
        "examples_per_second": experiment.global_batch / each if each else None,
        "seconds": clock.seconds,
        "peak_memory_bytes": replicas.all_gather_scalar(peak_memory_bytes()),
        "weights_sha256": state.sha256(),
    }


def write(workdir: Path, result: Mapping[str, Any]) -> None:
    """Writes result.json, all of it or nothing."""
    atomic_file.write_text(workdir / "result.json", json.dumps(result, indent=1) + "\n")


def baseline(data: DataSet) -> dict[str, Any] | None:
    """Returns the result of the data set's simple model, however long it takes; or its error.

    It is computed after the result was written, so that it can lose nothing.

    Raises:
        PreemptedError: a stop was requested meanwhile.
    """
    found: list[dict[str, Any] | None] = []

    def compute() -> None:
        try:
            found.append(data.baseline())
        except BaseException as error:  # whatever it is, the run is done without it
            found.append({"name": "baseline", "error": f"{type(error).__name__}: {error}"})

    thread = threading.Thread(target=compute, daemon=True)  # it cannot be interrupted
    thread.start()
    while thread.is_alive():
        heartbeat.beat(heartbeat.BASELINE)
        thread.join(POLL)
        if preemption.is_requested() and not found:
            raise PreemptedError(
                "stopped while the baseline was computed; the run is done and its result is "
                "written: the same command evaluates it again, and computes the baseline"
            ).on_every_rank(speaker=True)
    return found[0]


def changes_numbers(experiment: Experiment, layout: Layout, skips: int) -> list[str]:
    """Returns what changed the numbers on purpose; nothing is sent by a single process."""
    changes = [f"{skips} steps skipped that were not finite"] if skips else []
    u, n = experiment.update, layout.processes
    if u.compression != "none" and n > 1:
        how = "rounded to float16" if u.compression == "float16" else f"cut to {u.topk:.2%}"
        feedback = "" if u.error_feedback else ", with no error feedback"
        changes.append(f"gradients {how} on the wire of {n} processes{feedback}")
    if u.kind == "adasum" and n > 1:
        changes.append(f"gradients of {n} processes combined by Adasum")
    if is_local(u):
        who = f"{n} process{'es' * (n > 1)}"
        changes.append(f"{who} train independently for {u.local_steps} steps between averagings")
    if u.kind == "parameter_server" and u.staleness != 0:
        most = "any number of" if u.staleness is None else f"up to {u.staleness}"
        changes.append(
            f"{layout.workers} workers compute gradients {most} steps ahead of the weights"
        )
    return changes


def peak_memory_bytes() -> int:
    """Returns the most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
