"""The folder of one run: which experiment it belongs to, and what lies where."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from app.config import Experiment, Layout, as_dict, differences, plain
from app.errors import UsageError


def default(reference: str) -> Path:
    """runs/<experiment>/<time>."""
    name = reference.rpartition(":")[2]
    return Path("runs") / name / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")


def read(workdir: Path) -> dict[str, Any] | None:
    """What `claim` wrote; None for a folder that is no run yet."""
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON ({error}): give another --workdir.") from None
    if not isinstance(config, dict) or not {"reference", "experiment", "layout"} <= config.keys():
        raise UsageError(f"{path} is not of a run of scaleproof: give another --workdir.")
    return config


def check(workdir: Path, experiment: Experiment, layout: Layout) -> None:
    """Refuses to continue a run with another experiment, or exactly what was not begun so.

    Raises:
        UsageError: shows every field that differs.
    """
    config = read(workdir)
    if config is None:
        return
    ours = plain(as_dict(experiment))
    lines = differences(ours, config["experiment"])
    if layout.exact != config["layout"]["exact"]:
        lines.append(f"--exact: {layout.exact} here, {config['layout']['exact']} there")
    if lines:
        raise UsageError(
            f"{workdir} holds a run of another experiment: {'; '.join(lines)}. Give these fields "
            "the same values, or another --workdir."
        )


def claim(
    workdir: Path, reference: str, settings: list[str], experiment: Experiment,
    layout: dict[str, Any], versions: dict[str, str],
) -> None:  # fmt: skip
    """Writes config.json: everything needed to run the same again."""
    workdir.mkdir(parents=True, exist_ok=True)
    config = {
        "reference": reference,
        "set": settings,
        "experiment": as_dict(experiment),
        "layout": layout,
        "versions": versions,
    }
    partial = workdir / ".config.json"
    partial.write_text(json.dumps(config, indent=1) + "\n")
    partial.replace(workdir / "config.json")
