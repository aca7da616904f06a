"""Handles a step whose loss or gradient is not finite: logs its examples, then warns or stops."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from app.config import Update
from app.errors import NumbersError


def log(
    workdir: Path, rank: int, done: int, values: Mapping[str, Any],
    examples: Mapping[int, tf.Tensor],
) -> Path:  # fmt: skip
    """Adds a line to nonfinite.jsonl, whose path it returns.

    Args:
        workdir: of the run.
        rank: of this process.
        done: steps, with this one.
        values: the step's metrics.
        examples: ids of this rank's examples, by the micro-batch's place in the step.
    """
    ids = {place: each.numpy().tolist() for place, each in examples.items()}
    numbers = {name: float(values[name]) for name in ("loss", "gradient_norm")}
    # JSON has no infinity.
    shown = {name: x if math.isfinite(x) else str(x) for name, x in numbers.items()}
    line = json.dumps({"step": done, "rank": rank, **shown, "micro_batches": ids})
    workdir.mkdir(parents=True, exist_ok=True)  # may be on another machine than rank 0's
    path = workdir / "nonfinite.jsonl"
    with path.open("a") as file:  # a line is one write, so that ranks do not mix
        file.write(line + "\n")
    return path


def skip(
    update: Update, skips: int, done: int, values: Mapping[str, Any], path: Path, is_chief: bool
) -> str:
    """Returns the warning of a step that may be skipped.

    Args:
        update: the rule, with its budget.
        skips: skipped steps of the run, with this one.
        done: steps, with this one.
        values: the step's metrics.
        path: where its examples are logged.
        is_chief: whether this rank prints the error.

    Raises:
        NumbersError: on every rank; the step may not be skipped.
    """
    numbers = f"loss {float(values['loss'])} and gradient norm {float(values['gradient_norm'])}"
    if update.local_steps > 1:
        message = (
            f"one of the {update.local_steps} local steps up to step {done}: {numbers} must be "
            f"finite; the last one's examples are in {path}"
        )
    else:
        message = (
            f"step {done}: {numbers} must be finite; no weight was changed by this step, its "
            f"examples are in {path}"
        )
    is_skipping = update.on_nonfinite == "skip"
    if is_skipping and skips <= update.skip_budget:
        return f"{message} ({skips} of {update.skip_budget} that may be skipped)"
    way_out = "Lower optimization.learning_rate or lengthen optimization.warmup_epochs"
    if is_skipping:
        message += f"; more than update.skip_budget={update.skip_budget} of them"
    else:
        way_out += ", or set update.on_nonfinite=skip"
    raise NumbersError(f"{message}. {way_out}.").on_every_rank(is_chief)
