"""The training run: open, restore, loop, report."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from app import config, workdir
from app.config import Experiment, Layout
from app.errors import CheckpointError, NumbersError, UsageError
from app.parallel import replicas
from app.parallel.topology import Topology
from app.reporting import words
from app.reporting.clock import Clock
from app.reporting.report import Report
from app.training import opening
from app.training.checkpoint import Checkpoints
from app.training.evaluation import Evaluator
from app.training.optimization import learning_rate
from app.training.pipelined import PipelinedStep
from app.training.state import State


@dataclass(frozen=True)
class Run:
    """How a run is watched and kept; changes no number.

    Attributes:
        reference, settings: how the experiment was named, for config.json.
        checkpoint_every, evaluate_every: steps; 0: at the end only.
        keep: checkpoints, beside the best.
        stop_at_step: stop there, to be continued; 0: go to the end.
        log_every: steps between lines of metrics.jsonl.
        log_examples: write the ids of every step's examples, a file a rank.
    """

    workdir: Path
    data_dir: str
    reference: str = ""
    settings: tuple[str, ...] = ()
    checkpoint_every: int = 0
    evaluate_every: int = 0
    keep: int = 3
    stop_at_step: int = 0
    log_every: int = 10
    log_examples: bool = False


def train(experiment: Experiment, layout: Layout, where: Topology, run: Run) -> dict[str, Any]:
    """Trains to the experiment's last step, or continues the run in `run.workdir`.

    Returns what result.json holds.

    Raises:
        UserError: the same on every rank, before anything is written or trained.
        NumbersError: the same on every rank, at the step that is not finite.
        InputError: on the rank that meets an example it cannot read.
    """
    clock = Clock()
    opening.together(lambda: config.validate(experiment, layout))
    data = opening.open_data(experiment, run.data_dir)
    opening.together(lambda: config.validate_size(experiment, data.num_train))
    total = experiment.total_steps(data.num_train)
    source = opening.together(lambda: opening.pretrained(experiment, run.data_dir))
    placement = opening.placed(experiment, layout, where, data)
    state = opening.together(
        lambda: State(experiment, data.input_spec, data.num_classes, placement, source)
    )
    checkpoints = Checkpoints(run.workdir / "checkpoints", state, where, run.keep)
    first = checkpoints.restore()
    opening.together(lambda: claim(experiment, layout, where, run))
    report = Report(run.workdir, where.is_chief, first, total)
    report.say(words.run(experiment, layout, data, state, first, total))
    evaluator = Evaluator(state, data, experiment.micro_batch, where)
    mine = where.micro_batches(experiment.num_micro_batches)
    step = opening.make_step(experiment, layout, state, mine)
    last = min(total, run.stop_at_step or total)
    batches = opening.training_batches(experiment, data, where, first, last)
    if run.log_examples:
        batches = log_examples(batches, experiment, where, run.workdir, first)
    metrics: dict[str, dict[str, float]] = {}
    for s in range(first, last):
        rate = learning_rate(
            experiment.optimization, s, experiment.global_batch, data.num_train, total
        )
        clock.start()
        values = {name: v.numpy() for name, v in step(s, batches, rate).items()}
        clock.stop()
        check_finite(values, s, where)
        done, is_last = s + 1, s + 1 == last
        report.advance(float(values["loss"]))
        if is_last or done % run.log_every == 0 or s == first:
            speed = experiment.global_batch / clock.recent()
            seen = done * experiment.global_batch
            numbers = {n: float(values[n]) for n in ("loss", "accuracy", "gradient_norm")}
            report.step(
                {"step": done, "epoch": seen / data.num_train, **numbers, "learning_rate": rate,
                 "examples_per_second": speed}, is_last,
            )  # fmt: skip
        metrics = {}
        if is_last or (run.evaluate_every and done % run.evaluate_every == 0):
            metrics = evaluate_weights(evaluator, state)
            report.evaluation(done, metrics)
        if is_last or (run.checkpoint_every and done % run.checkpoint_every == 0):
            checkpoints.save(done, metrics.get(evaluator.split, {}))
    if not metrics:  # the run was complete already
        metrics = evaluate_weights(evaluator, state)
    table = step.table() if isinstance(step, PipelinedStep) and layout.devices > 1 else []
    for line in words.stages(table):
        report.say(line)
    seconds = time.monotonic() - clock.begin
    result = {
        "experiment": config.as_dict(experiment),
        "layout": config.as_dict(layout),
        "changes_numbers": changes_numbers(experiment, layout),
        "steps": max(first, last),
        "finished": max(first, last) >= total,
        "metrics": metrics,
        "stages": table,
        "baseline": data.baseline() if where.is_chief else None,
        "examples_per_second": experiment.global_batch / clock.typical() if clock.steps else None,
        "seconds": seconds,
        "peak_memory_bytes": replicas.each(peak_memory_bytes()),
        "weights_sha256": state.sha256(),
        "workdir": str(run.workdir),
    }
    report.close()
    if where.is_chief:
        partial = run.workdir / ".result.json"
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(run.workdir / "result.json")
    return result


def evaluate(
    experiment: Experiment, layout: Layout, where: Topology, folder: Path, data_dir: str
) -> dict[str, Any] | None:
    """Evaluates the newest checkpoint of a run; returns its metrics on rank 0.

    Raises:
        CheckpointError: there is none, or it cannot be restored.
    """
    data = opening.open_data(experiment, data_dir)
    placement = opening.placed(experiment, layout, where, data)
    state = opening.together(
        lambda: State(experiment, data.input_spec, data.num_classes, placement)
    )
    step = Checkpoints(folder / "checkpoints", state, where, keep=1).restore()
    if not step:
        error = CheckpointError(f"{folder} has no checkpoint yet: train it first.")
        raise error.on_every_rank(speaker=where.is_chief)
    metrics = evaluate_weights(Evaluator(state, data, experiment.micro_batch, where), state)
    return {"step": step, **metrics} if where.is_chief else None


def claim(experiment: Experiment, layout: Layout, where: Topology, run: Run) -> None:
    """Writes config.json, on rank 0.

    Raises:
        UsageError: the folder cannot be written.
    """
    if not where.is_chief:
        return
    try:
        workdir.claim(
            run.workdir, run.reference, list(run.settings), experiment,
            config.as_dict(layout), replicas.versions(),
        )  # fmt: skip
    except OSError as error:
        raise UsageError(
            f"cannot write to {run.workdir} ({error.strerror}): give another --workdir."
        ) from None


def log_examples(
    batches: Iterator[tuple[tf.Tensor, ...]],
    experiment: Experiment,
    where: Topology,
    folder: Path,
    first: int,
) -> Iterator[tuple[tf.Tensor, ...]]:
    """Writes the ids of each micro-batch that passes: a line each, a file a rank."""
    mine = where.micro_batches(experiment.num_micro_batches)
    folder.mkdir(parents=True, exist_ok=True)  # rank 0 may have made it on another machine
    with (folder / f"examples-{where.rank}.jsonl").open("a") as lines:
        for k, batch in enumerate(batches):
            step, place = first + k // len(mine) + 1, mine[k % len(mine)]
            line = {"step": step, "micro_batch": place, "examples": batch[2].numpy().tolist()}
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            yield batch


def evaluate_weights(evaluator: Evaluator, state: State) -> dict[str, dict[str, float]]:
    """Metrics of the weights and, if they are kept, of their moving averages, by split."""
    metrics = {evaluator.split: evaluator()}
    if state.has_average:
        with state.averaged():
            metrics[f"{evaluator.split}_average"] = evaluator()
    return metrics


def check_finite(values: dict[str, Any], step: int, where: Topology) -> None:
    """Every rank sees the same sums, so every rank stops or none does."""
    if values["finite"] or values["skipped"]:
        return
    error = NumbersError(
        f"step {step + 1}: loss {values['loss']} and gradient norm {values['gradient_norm']} must "
        "be finite; no weight was changed by this step. Lower optimization.learning_rate or "
        "lengthen optimization.warmup_epochs."
    )
    raise error.on_every_rank(speaker=where.is_chief)


def changes_numbers(experiment: Experiment, layout: Layout) -> list[str]:
    """What the experiment does to its numbers on purpose; one process has no wire."""
    compression = experiment.update.compression
    if compression == "none" or layout.processes == 1:
        return []
    return [f"gradients rounded to {compression} on the wire"]


def peak_memory_bytes() -> int:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
