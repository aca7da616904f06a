"""What a run came to: result.json."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app import config
from app.config import Experiment, Layout
from app.parallel import replicas
from app.reporting.clock import Clock
from app.training.opening import Opened


def compose(
    opened: Opened, layout: Layout, clock: Clock, done: int, found: Mapping[str, Any]
) -> dict[str, Any]:
    """The result after `done` steps, the same on every rank but for what rank 0 alone found.

    Args:
        opened: experiment and state.
        layout: of the last session.
        clock: of the run.
        done: steps.
        found: metrics by split, the table of stages, the baseline.
    """
    experiment, state = opened.experiment, opened.state
    return {
        "experiment": config.as_dict(experiment),
        "layout": config.as_dict(layout),
        "changes_numbers": changes_numbers(experiment, layout, int(state.skips)),
        "steps": done,
        "finished": done >= opened.total,
        **found,
        "examples_per_second": experiment.global_batch / clock.typical() if clock.steps else None,
        "seconds": time.monotonic() - clock.begin,
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
    compression = experiment.update.compression
    if compression != "none" and layout.processes > 1:
        told.append(f"gradients rounded to {compression} on the wire")
    return told


def peak_memory_bytes() -> int:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
