"""The training run: open, build, restore, loop, report."""

from __future__ import annotations

import dataclasses
import itertools
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
from app.errors import CheckpointError, DataError, NumbersError, UserError
from app.parallel import replicas
from app.parallel.topology import Topology
from app.reporting.report import Report
from app.training.checkpoint import Checkpoints
from app.training.evaluation import Evaluator
from app.training.optimization import learning_rate
from app.training.state import State
from app.training.step import Step
from input import InputError


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
        UserError: the same on every rank, before anything is written or trained; or
            NumbersError, at the step that is not finite.
    """
    data = open_data(experiment, layout, run.data_dir)
    total = experiment.total_steps(data.num_train)
    state = State(experiment, data.input_shape, data.num_classes)
    checkpoints = Checkpoints(run.workdir / "checkpoints", state, where, run.keep)
    first = checkpoints.restore()
    if where.is_chief:
        workdir.claim(
            run.workdir, run.reference, list(run.settings), experiment,
            dataclasses.asdict(layout), replicas.versions(),
        )  # fmt: skip
    report = Report(run.workdir, where.is_chief, first, total)
    report.say(describe(experiment, layout, data, state, first, total))
    evaluate = Evaluator(state, data, experiment.micro_batch, where)
    step = Step(experiment, layout, state, where.micro_batches(experiment.num_micro_batches))
    last = min(total, run.stop_at_step or total)
    batches = training_batches(experiment, data, where, first, last)
    if run.log_examples:
        batches = log_examples(batches, run.workdir / f"examples-{where.rank}.jsonl")
    clock, metrics = Clock(), {}
    for s in range(first, last):
        rate = learning_rate(
            experiment.optimization, s, experiment.global_batch, data.num_train, total
        )
        clock.start()
        values = {name: v.numpy() for name, v in step(s, batches, rate).items()}
        clock.stop()
        check_finite(values, s, experiment, state, where)
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
        if is_last or (run.evaluate_every and done % run.evaluate_every == 0):
            metrics = evaluate_weights(evaluate, state)
            report.evaluation(done, data.evaluation_split, metrics)
        if is_last or (run.checkpoint_every and done % run.checkpoint_every == 0):
            checkpoints.save(done, metrics.get("weights", {}))
    if not metrics:  # the run was complete already
        metrics = evaluate_weights(evaluate, state)
    result = {
        "experiment": config.as_dict(experiment),
        "layout": dataclasses.asdict(layout),
        "changes_numbers": changes_numbers(experiment),
        "steps": max(first, last),
        "finished": max(first, last) >= total,
        "metrics": {
            data.evaluation_split if kind == "weights" else f"{data.evaluation_split}_{kind}": m
            for kind, m in metrics.items()
        },
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
    experiment: Experiment, layout: Layout, where: Topology, folder: Path, data_dir: str
) -> dict[str, Any] | None:
    """Evaluates the newest checkpoint of a run; returns its metrics on rank 0.

    Raises:
        CheckpointError: there is none, or it cannot be restored.
    """
    data = open_data(experiment, layout, data_dir)
    state = State(experiment, data.input_shape, data.num_classes)
    step = Checkpoints(folder / "checkpoints", state, where, keep=1).restore()
    if not step:
        error = CheckpointError(f"{folder} has no checkpoint yet: train it first.")
        error.everywhere, error.speaker = True, where.is_chief
        raise error
    metrics = evaluate_weights(Evaluator(state, data, experiment.micro_batch, where), state)
    found = {"step": step, data.evaluation_split: metrics["weights"]}
    if state.average:
        found[f"{data.evaluation_split}_average"] = metrics["average"]
    return found if where.is_chief else None


def join(layout: Layout) -> tuple[Topology, Layout]:
    """Joins the job, and makes TensorFlow's arithmetic repeatable if it must be.

    Once a process, before TensorFlow's first operation.
    """
    where = replicas.join(layout.exact)
    if layout.exact:
        tf.keras.utils.set_random_seed(0)  # op determinism refuses to draw a seed itself
        tf.config.experimental.enable_op_determinism()
        # What graph rewriting fuses depends on where a graph is cut.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    return where, dataclasses.replace(layout, processes=where.size)


def open_data(experiment: Experiment, layout: Layout, data_dir: str) -> Any:
    """Opens the data on every rank, or fails on every rank."""
    error: UserError | None = None
    data = None
    try:
        config.validate(experiment, layout)
        data = experiment.data.open(data_dir)
        config.validate_size(experiment, data.num_train)
    except UserError as caught:
        error = caught
    except InputError as caught:
        error = DataError(str(caught))
    replicas.agree(error)
    return data


def training_batches(
    experiment: Experiment, data: Any, where: Topology, first: int, last: int
) -> Iterator[tuple[tf.Tensor, ...]]:
    """A process's micro-batches of steps [first, last).

    Raises:
        DataError: names the example that cannot be read.
    """
    total = experiment.num_micro_batches
    mine = where.micro_batches(total)

    def number(k: Any) -> Any:
        return (first + k // len(mine)) * total + mine.start + k % len(mine)

    count = (last - first) * len(mine)
    dataset = data.train(experiment.seed, experiment.micro_batch, number, count)
    iterator = iter(dataset)
    for k in itertools.count():
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            damage = data.damaged(experiment.seed, experiment.micro_batch, number(k))
            if damage is None:
                raise
            raise DataError(str(damage)) from error
        yield batch


def log_examples(
    batches: Iterator[tuple[tf.Tensor, ...]], path: Path
) -> Iterator[tuple[tf.Tensor, ...]]:
    """Writes the ids of each micro-batch that passes, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lines:
        for batch in batches:
            lines.write(json.dumps(batch[2].numpy().tolist()) + "\n")
            lines.flush()
            yield batch


def evaluate_weights(evaluate: Evaluator, state: State) -> dict[str, dict[str, float]]:
    """Metrics of the weights and, if they are kept, of their moving averages."""
    metrics = {"weights": evaluate()}
    if state.average:
        with state.averaged():
            metrics["average"] = evaluate()
    return metrics


def check_finite(
    values: dict[str, Any], step: int, experiment: Experiment, state: State, where: Topology
) -> None:
    """Every rank sees the same sums, so every rank stops or none does."""
    if values["finite"]:
        return
    if experiment.precision == "float16" and state.loss_scale.numpy() > 1:
        return  # the step was skipped, the next one runs at half the scale
    error = NumbersError(
        f"step {step + 1}: loss {values['loss']} and gradient norm {values['gradient_norm']} must "
        "be finite; no weight was changed by this step. Lower optimization.learning_rate or "
        "lengthen optimization.warmup_epochs."
    )
    error.everywhere, error.speaker = True, where.is_chief
    raise error


def describe(
    experiment: Experiment, layout: Layout, data: Any, state: State, first: int, total: int
) -> str:
    """What runs where, in two lines."""
    parameters = sum(v.shape.num_elements() for v in state.trainable)
    shares = [
        len(Topology(rank, layout.processes).micro_batches(experiment.num_micro_batches))
        for rank in range(layout.processes)
    ]
    return (
        f"{parameters:,} parameters, {data.num_train:,} training and {data.num_evaluation:,} "
        f"{data.evaluation_split} examples, {experiment.precision}"
        f"{', exact' if layout.exact else ''}\n"
        f"global batch {experiment.global_batch} = {experiment.num_micro_batches} micro-batches of "
        f"{experiment.micro_batch} on {layout.processes} process"
        f"{'es' if layout.processes > 1 else ''} ({max(shares)} to {min(shares)} each), "
        f"{tf.config.threading.get_intra_op_parallelism_threads()} threads a process, "
        f"steps {first + 1} to {total}"
    )


def changes_numbers(experiment: Experiment) -> list[str]:
    """What the experiment does to its numbers on purpose."""
    compression = experiment.update.compression
    return [] if compression == "none" else [f"gradients rounded to {compression} on the wire"]


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
