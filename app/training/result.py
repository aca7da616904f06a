"""What a run came to: result.json."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app import config
from app.config import Experiment, Layout
from app.parallel import replicas
from app.reporting.clock import Clock
from app.training import exchange, kernels
from app.training.setup import Opened


def compose(
    opened: Opened, layout: Layout, clock: Clock, done: int, found: Mapping[str, Any]
) -> dict[str, Any]:
    """The result after `done` steps, the same on every rank but for what rank 0 alone found.

    Args:
        opened: experiment and state.
        layout: of the last session.
        clock: of the run.
        done: steps.
        found: metrics by split, the table of stages, bytes that were sent.
    """
    experiment, state, each = opened.experiment, opened.state, clock.typical()
    return {
        "experiment": config.as_dict(experiment),
        "layout": config.as_dict(layout),
        "kernels": kernels.names(),
        "changes_numbers": changes_numbers(experiment, layout, int(state.skips)),
        "steps": done,
        "finished": done >= opened.total,
        **found,
        "baseline": None,
        "examples_per_second": experiment.global_batch / each if each else None,
        "seconds": clock.seconds,
        "peak_memory_bytes": replicas.each(peak_memory_bytes()),
        "weights_sha256": state.sha256(),
    }


def write(workdir: Path, result: Mapping[str, Any]) -> None:
    """Writes result.json, all of it or nothing."""
    partial = workdir / ".result.json"
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(workdir / "result.json")


def changes_numbers(experiment: Experiment, layout: Layout, skips: int) -> list[str]:
    """What was done to the numbers on purpose; one process has no wire."""
    told = [f"{skips} steps skipped that were not finite"] if skips else []
    u, n = experiment.update, layout.processes
    if u.compression != "none" and n > 1:
        how = "rounded to float16" if u.compression == "float16" else f"cut to {u.topk:.2%}"
        feedback = "" if u.error_feedback else ", with no error feedback"
        told.append(f"gradients {how} on the wire of {n} processes{feedback}")
    if u.kind == "adasum" and n > 1:
        told.append(f"gradients of {n} processes combined by Adasum")
    if exchange.is_local(u):
        who = f"{n} process{'es' * (n > 1)}"
        told.append(f"{who} train alone for {u.local_steps} steps between averagings")
    if u.kind == "parameter_server" and u.staleness != 0:
        most = "any number of" if u.staleness is None else f"up to {u.staleness}"
        told.append(f"{layout.workers} workers compute gradients {most} steps ahead of the weights")
    return told


def peak_memory_bytes() -> int:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
