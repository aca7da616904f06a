"""The training run: open, build, restore, loop, report."""

from __future__ import annotations

import dataclasses
import json
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import tensorflow as tf

from app import config, workdir
from app.config import Experiment, Layout
from app.errors import CheckpointError, DataError, NumbersError, UsageError, UserError
from app.parallel import replicas
from app.parallel.placement import Placement, connect, local_devices
from app.parallel.topology import Topology
from app.reporting import chatter, words
from app.reporting.report import Report
from app.training import stages
from app.training.checkpoint import Checkpoints
from app.training.evaluation import Evaluator
from app.training.optimization import learning_rate
from app.training.pipelined import PipelinedStep
from app.training.state import State
from app.training.step import Step
from input import InputError, packages
from models import ModelError

Result = TypeVar("Result")


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
    together(lambda: config.validate(experiment, layout))
    data = open_data(experiment, run.data_dir)
    together(lambda: config.validate_size(experiment, data.num_train))
    together(lambda: config.validate_limits(experiment, getattr(data, "limits", {})))
    total = experiment.total_steps(data.num_train)
    source = together(lambda: pretrained(experiment, run.data_dir))
    placement = placed(experiment, layout, where, data)
    state = together(
        lambda: State(experiment, data.input_spec, data.num_classes, placement, source)
    )
    checkpoints = Checkpoints(run.workdir / "checkpoints", state, where, run.keep)
    first = checkpoints.restore()
    together(lambda: claim(experiment, layout, where, run))
    report = Report(run.workdir, where.is_chief, first, total)
    report.say(words.run(experiment, layout, data, state, first, total))
    evaluator = Evaluator(state, data, experiment.micro_batch, where)
    mine = where.micro_batches(experiment.num_micro_batches)
    kind = PipelinedStep if layout.stages > 1 or layout.exact else Step
    step = kind(experiment, layout, state, mine)
    last = min(total, run.stop_at_step or total)
    batches = training_batches(experiment, data, where, first, last)
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
    table = step.table() if isinstance(step, PipelinedStep) and layout.stages > 1 else []
    for line in words.stages(table):
        report.say(line)
    baseline = getattr(data, "baseline", None)
    result = {
        "experiment": config.as_dict(experiment),
        "layout": config.as_dict(layout),
        "changes_numbers": changes_numbers(experiment, layout),
        "steps": max(first, last),
        "finished": max(first, last) >= total,
        "metrics": metrics,
        "stages": table,
        "baseline": baseline() if baseline and where.is_chief else None,
        "examples_per_second": experiment.global_batch / clock.typical() if clock.steps else None,
        "seconds": time.monotonic() - clock.begin,
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
    experiment: Experiment, where: Topology, folder: Path, data_dir: str
) -> dict[str, Any] | None:
    """Evaluates the newest checkpoint of a run; returns its metrics on rank 0.

    Raises:
        CheckpointError: there is none, or it cannot be restored.
    """
    data = open_data(experiment, data_dir)
    state = together(lambda: State(experiment, data.input_spec, data.num_classes))
    step = Checkpoints(folder / "checkpoints", state, where, keep=1).restore()
    if not step:
        error = CheckpointError(f"{folder} has no checkpoint yet: train it first.")
        raise error.on_every_rank(speaker=where.is_chief)
    metrics = evaluate_weights(Evaluator(state, data, experiment.micro_batch, where), state)
    return {"step": step, **metrics} if where.is_chief else None


def join(layout: Layout) -> tuple[Topology, Layout]:
    """Joins the job, and makes TensorFlow's arithmetic repeatable if it must be.

    Once a process, before TensorFlow's first operation.
    """
    where = replicas.join(layout.exact, 1 if layout.servers else layout.stages)
    if layout.exact:
        tf.keras.utils.set_random_seed(0)  # op determinism refuses to draw a seed itself
        tf.config.experimental.enable_op_determinism()
        # What graph rewriting fuses depends on where a graph is cut.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    with chatter.kept():  # XLA announces itself, once a process
        tf.function(lambda: tf.constant(0), jit_compile=True)()
    return where, dataclasses.replace(layout, processes=where.size)


def together(action: Callable[[], Result]) -> Result:
    """Does the same on every rank; what fails on one fails on all.

    Raises:
        UserError: the same on every rank, told by the first that has it.
    """
    result, error = None, None
    try:
        result = action()
    except UserError as caught:
        error = caught
    except InputError as caught:
        error = DataError(str(caught))
    except ModelError as caught:
        error = UsageError(str(caught))
    replicas.agree(error)
    return cast(Result, result)


def open_data(experiment: Experiment, data_dir: str) -> Any:
    """Opens the data on every rank, once it is sure that all mean the same experiment."""

    def open_it() -> Any:
        if ours != theirs:
            lines = config.differences(json.loads(ours), json.loads(theirs))
            raise UsageError(
                f"this rank has another experiment than rank 0: {'; '.join(lines)}. Give all "
                "machines the same files, flags and --workdir."
            )
        return experiment.data.open(data_dir)

    ours = json.dumps(config.as_dict(experiment))
    theirs = replicas.broadcast_text(ours)
    return together(open_it)


def placed(
    experiment: Experiment,
    layout: Layout,
    where: Topology,
    data: Any,
    costs: stages.Costs | None = None,
) -> Placement:
    """The cut of the model, the same on every rank; its blocks are measured if need be."""
    if layout.stages > 1 and not layout.cut and costs is None:
        costs = measured(experiment, where, data)
    p = layout.stages
    own = layout.servers[where.rank * p : (where.rank + 1) * p]
    devices = together(lambda: connect(own) if own and p > 1 else local_devices(p))
    return together(lambda: stages.place(experiment, layout, devices, data.num_classes, costs))


def measured(experiment: Experiment, where: Topology, data: Any) -> stages.Costs:
    """What each block costs on rank 0."""
    found = together(
        lambda: (
            stages.measure(experiment, data.input_spec, data.num_classes)
            if where.is_chief
            else None
        )
    )
    text = replicas.broadcast_text(json.dumps(dataclasses.asdict(found)) if found else "")
    return stages.Costs(**json.loads(text))


def pretrained(experiment: Experiment, data_dir: str) -> Path | None:
    """The folder of the weights that training starts from, if it does."""
    name = getattr(experiment.model, "init_from", None)
    return packages.pretrained(name, data_dir) if name else None


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


def training_batches(
    experiment: Experiment, data: Any, where: Topology, first: int, last: int
) -> Iterator[tuple[tf.Tensor, ...]]:
    """A process's micro-batches of steps [first, last)."""
    total = experiment.num_micro_batches
    mine = where.micro_batches(total)

    def number(k: Any) -> Any:
        return (first + k // len(mine)) * total + mine.start + k % len(mine)

    count = (last - first) * len(mine)
    return iter(data.train(experiment.seed, experiment.micro_batch, number, count))


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


class Clock:
    """Seconds of each step; the first, which compiles, is left out of the figures."""

    def __init__(self) -> None:
        self.begin = time.monotonic()
        self.steps: list[float] = []
        self._from = 0.0

    def start(self) -> None:
        """A step begins."""
        self._from = time.monotonic()

    def stop(self) -> None:
        """A step has ended."""
        self.steps.append(time.monotonic() - self._from)

    def recent(self) -> float:
        """Median of the last ten steps."""
        return median(self.steps[1:][-10:] or self.steps)

    def typical(self) -> float:
        """Median of all steps."""
        return median(self.steps[1:] or self.steps)


def median(values: list[float]) -> float:
    """The middle value."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
