"""Reports a run's progress from rank 0: lines, a progress bar, metrics.jsonl, TensorBoard."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import tensorflow as tf
from tqdm import tqdm

from input import paths

LINE_SECONDS = 10.0  # between progress lines where there is no terminal


class Report:
    """A run's reports; silent on every rank but the chief.

    Args:
        workdir: of the run.
        is_chief: whether this rank reports.
        first_step: that were taken before.
        total_steps: of the run.
        reported: metrics of a step that are printed beside the loss.
    """

    def __init__(
        self, workdir: Path, is_chief: bool, first_step: int, total_steps: int,
        reported: Sequence[str],
    ) -> None:  # fmt: skip
        self.is_chief, self.total_steps, self.reported = is_chief, total_steps, reported
        self._spoke = 0.0
        self._bar: Any = None
        if not is_chief:
            return
        self._metrics = (workdir / "metrics.jsonl").open("a")
        events = workdir / "tensorboard"
        events.mkdir(exist_ok=True)
        self._held = contextlib.ExitStack()
        self._events = tf.summary.create_file_writer(self._held.enter_context(paths.plain(events)))
        file = terminal()
        if file:
            self._bar = tqdm(
                total=total_steps, initial=first_step, unit="step", file=file, leave=False
            )

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self.is_chief:
            (self._bar.write if self._bar is not None else print)(line)
            sys.stdout.flush()

    def step(self, values: dict[str, Any], is_last: bool) -> None:
        """Reports a training step's metrics."""
        if not self.is_chief:
            return
        self.event("train", values)
        if self._bar is None and (is_last or time.monotonic() - self._spoke > LINE_SECONDS):
            self._spoke = time.monotonic()
            self.say(
                f"step {values['step']}/{self.total_steps}  epoch {values['epoch']:.2f}  "
                f"{_shown({name: values[name] for name in ('loss', *self.reported)})}  "
                f"rate {values['learning_rate']:.4g}  "
                f"{values['examples_per_second']:.1f} examples/s"
            )

    def advance(self, loss: float) -> None:
        """Moves the bar by one step."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self._bar.update()

    def evaluation(self, step: int, metrics: dict[str, dict[str, float]]) -> None:
        """Reports the metrics of the weights and of their averages, by name."""
        for name, values in metrics.items():
            self.event(name, {"step": step, **values})
            self.say(f"step {step}/{self.total_steps}  {name}: {_shown(values)}")

    def event(self, kind: str, values: dict[str, Any]) -> None:
        """Writes a line to metrics.jsonl and points to TensorBoard."""
        if not self.is_chief:
            return
        # JSON has no infinity: a step that float16 skipped has null for its norm.
        finite = {n: v if math.isfinite(v) else None for n, v in values.items()}
        self._metrics.write(json.dumps({"event": kind, **finite}) + "\n")
        self._metrics.flush()
        with self._events.as_default(step=values["step"]):
            for name, value in values.items():
                if name != "step":
                    tf.summary.scalar(f"{kind}/{name}", value)

    def close(self) -> None:
        """Flushes and closes the files."""
        if not self.is_chief:
            return
        if self._bar is not None:
            self._bar.close()
        self._metrics.close()
        self._events.close()
        self._held.close()


def terminal() -> TextIO | None:
    """Returns where to draw a bar, if anywhere; run.sh names its terminal to horovodrun's ranks."""
    if sys.stderr.isatty():
        return sys.stderr
    try:
        return open(os.environ["SCALEPROOF_TERMINAL"], "w")
    except (KeyError, OSError):
        return None


def _shown(metrics: Mapping[str, float]) -> str:
    """Formats metrics for a line; counts, which are integers, are left out."""
    each = (f"{name} {x:.4f}" for name, x in metrics.items() if isinstance(x, float))
    return "  ".join(each)
