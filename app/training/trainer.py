"""Trains a run from its first step to its last, or to what stops it.

    set up, restore
    for each step:  compute | finite? | report | vote | evaluate? | compare? | save? | stop?
    result

The ranks never change in here; an elastic run (`strategies/elastic.py`) has several trainers.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from app import config
from app.config import Experiment, Layout
from app.errors import MembershipChangedError, PreemptedError, UserError
from app.parallel import network, replicas, straggler
from app.parallel.topology import Topology
from app.recovery import heartbeat, manifest, preemption
from app.reporting import summary
from app.reporting.clock import Clock
from app.reporting.report import Report
from app.training import data as run_data
from app.training import divergence, nonfinite, result, step_sums, strategy
from app.training.agreement import (
    Signals,
    require_same,
    require_same_kernels,
    run_on_all_ranks,
    vote,
)
from app.training.batch_stream import BatchStream, training_batches
from app.training.checkpoint import Checkpoints
from app.training.evaluation import Evaluator, Metrics
from app.training.setup import Run, Setup, claim_workdir, open_run
from app.training.state import State
from app.training.step import make_step


def train(experiment: Experiment, layout: Layout, topology: Topology, run: Run) -> dict[str, Any]:
    """Trains to the experiment's last step, or continues the run in `run.workdir`.

    Returns what result.json holds.

    Raises:
        UserError: the same on every rank; those of `Trainer.train`, and what is found before
            the first step, when nothing is written or trained yet.
        InputError: on the rank that meets an example it cannot read.
    """
    clock = Clock()
    setup = open_run(experiment, layout, topology, run.data_dir)
    if layout.elastic:
        found: dict[str, Any] = strategy.load("elastic").train(setup, layout, run, clock)
        return found
    with contextlib.ExitStack() as stack:
        trainer = Trainer(setup, layout, topology, run, clock)
        trainer.warnings += run_on_all_ranks(
            lambda: claim_workdir(setup, layout, topology, run, stack)
        )
        first = trainer.checkpoints.restore()
        clock.resume(trainer.checkpoints.counted)
        return trainer.train(first)


class Trainer:
    """Training on a fixed set of ranks.

    Args:
        setup: data and state.
        layout: with the processes of this trainer.
        topology: this process among them.
        run: how the run is watched and saved.
        clock: of the whole run.
        signals: what else the ranks vote on after each step, besides stopping and saving.
        commit: commits the state to memory, every `run.commit_every` steps.

    Raises:
        UserError: the same on every rank, if something differs between ranks.
    """

    def __init__(
        self, setup: Setup, layout: Layout, topology: Topology, run: Run, clock: Clock,
        signals: Signals | None = None, commit: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        self.setup, self.layout, self.topology = setup, layout, topology
        self.run, self.clock, self.commit = run, clock, commit
        self.experiment: Experiment = setup.experiment
        self.state: State = setup.state
        require_same("set-up", setup.facts())
        require_same_kernels(layout.exact)
        about = {
            "experiment": config.as_dict(self.experiment),
            "versions": replicas.versions(),
            "meaning": run_data.meaning(setup.data),
            "data": run_data.facts(setup.data),
        }
        folder = run.workdir / "checkpoints"
        self.checkpoints = Checkpoints(
            folder, self.state, topology, run.keep, about, self.experiment.objective
        )
        evaluated = setup.mirror or self.state
        self.evaluator = Evaluator(self.experiment, evaluated, setup.data, topology)
        self.signals = {"stop": preemption.is_requested, "save": self._must_save, **(signals or {})}
        self.reported = [*step_sums.names(self.experiment.objective), "staleness"]
        self.metrics: Metrics = {}
        self.warnings: list[str] = []  # to be printed as training begins
        self.last = last_step(run.stop_at_step, self.experiment.update.local_steps, setup.total)
        self._saved_at = time.monotonic()

    def train(self, first: int) -> dict[str, Any]:
        """Trains from the state after `first` steps to the last; returns what result.json holds.

        Raises:
            PreemptedError: a stop was requested; the state is saved.
            NumbersError: a step that is not finite, and may not be skipped.
            CheckpointError: the last one could not be written.
            DivergedError: the replicas differ.
            MembershipChangedError: the ranks are about to change; the state is committed.
            InputError: on the rank that meets an example it cannot read.
        """
        self.begin(first)
        try:
            for s in range(first, self.last):
                self.advance(s)
                if self.step.is_round(s + 1):
                    self.after_round(s + 1, vote(self.signals))
            return self.finish(max(first, self.last))
        finally:
            self.close()

    def begin(self, first: int) -> None:
        """Makes the step and its batches, from step `first` on, and reports what runs where."""
        run_on_all_ranks(self.checkpoints.set_aside)
        self.first, self._sent_before = first, network.bytes_sent()
        missing = self.checkpoints.missing
        rest = range(first + len(missing), self.last)
        order = [*missing, *rest] if missing else rest
        own = self.topology.micro_batches(self.experiment.num_micro_batches)
        self.step = make_step(
            self.experiment, self.layout, self.state, own, order, furthest=rest.start - 1
        )
        self.clock.in_bursts = self.step.comes_in_bursts
        self._report_begin()
        batches = training_batches(self.experiment, self.setup.data, self.topology, order)
        log = self.run.workdir / f"examples-{self.topology.rank}.jsonl"
        self.stream = BatchStream(batches, own, order, log if self.run.log_examples else None)
        if first < self.last or not self.checkpoints.is_evaluated:
            self.clock.begin()  # else its seconds are among those that were counted

    def advance(self, s: int) -> None:
        """Takes step `s`, times it, checks it and reports it."""
        done = s + 1
        heartbeat.beat("computing", s, self.topology.rank)
        self.clock.start()
        values, rate = self.compute(s)
        self.clock.stop()
        heartbeat.beat("between", done)
        if self.step.is_round(done):
            self.check_finite(values, done)
        if s == self.first and not self.layout.workers:
            straggler.start(self.topology.rank)  # once the first step is compiled
        self._report_step(values, rate, done)

    def compute(self, s: int) -> tuple[dict[str, Any], float]:
        """Computes step `s`, from data to weights; returns its metrics and its learning rate."""
        e, data = self.experiment, self.setup.data
        rate = e.optimization.rate_at(s, e.global_batch, data.num_train, self.setup.total)
        return {name: v.numpy() for name, v in self.step(s, self.stream, rate).items()}, rate

    def check_finite(self, values: Mapping[str, Any], done: int) -> None:
        """Logs a step that is not finite; warns if it may be skipped.

        Every rank sees the same sums, so every rank stops or none does.

        Raises:
            NumbersError: it may not.
        """
        if values["finite"] or values["skipped"]:  # the latter for the float16 loss scale
            return
        examples = self.stream.ids if self.step.examples is None else self.step.examples
        path = nonfinite.log(self.run.workdir, self.topology.rank, done, values, examples)
        update, skips = self.experiment.update, int(self.state.skips)
        warning = nonfinite.skip(update, skips, done, values, path, self.topology.is_chief)
        self.report.say(f"warning: {warning}")

    def after_round(self, done: int, signals: set[str]) -> None:
        """Evaluates, compares, saves, commits and stops after `done` steps, as each is due."""
        run, is_last, self.metrics = self.run, done == self.last, {}
        before = done - self.experiment.update.local_steps  # the previous round ended there

        def is_due(every: int) -> bool:
            return bool(every) and done // every > before // every

        is_stopping = "stop" in signals
        if not is_stopping and (is_last or is_due(run.evaluate_every)):
            metrics = self.evaluate()
            is_stopping = metrics is None
            if metrics:
                self.metrics = metrics
                self.report.evaluation(done, metrics)
        is_saving = is_last or is_stopping or "save" in signals or is_due(run.checkpoint_every)
        repaired = None
        if is_saving or is_due(run.compare_every):
            repaired = divergence.check(self.state, self.topology, done, run.repair)
            if repaired:
                self.report.say(f"warning: {repaired}")
        if is_saving:
            self.save(done, is_awaited=is_last or is_stopping)
        is_changing = "change" in signals and not is_last
        if self.commit and (is_changing or repaired or is_due(run.commit_every)):
            self.commit(done)
        if is_stopping:
            raise self.preempted(done)
        if is_changing:
            raise MembershipChangedError

    def evaluate(self) -> Metrics | None:
        """Returns the metrics of the weights and of their moving averages; None if stopped."""
        if self.setup.mirror:
            self.setup.mirror.assign(self.state.snapshot())
        return self.evaluator.evaluate()

    def save(self, done: int, is_awaited: bool) -> None:
        """Begins to write a checkpoint; waits for the last one, which must succeed."""
        heartbeat.beat("saving")
        self._saved_at = time.monotonic()
        metrics = self.metrics.get(self.evaluator.split, {})
        error = self.checkpoints.save(done, metrics, self.step.missing(), self.clock.counted())
        if is_awaited:
            replicas.raise_on_all_ranks(self.checkpoints.wait())
        elif error:
            self.report.say(f"warning: {error}")
        if self.topology.is_chief:
            self.report.event("checkpoint", {"step": done, "stall": self.checkpoints.stall})

    def preempted(self, done: int) -> UserError:
        """Returns the error that ends a run that stops early; no result is written."""
        return PreemptedError(
            f"stopped after step {done} of {self.setup.total} and saved: the same command with "
            f"--workdir={self.run.workdir} continues it"
        ).on_every_rank(speaker=self.topology.is_chief)

    def finish(self, done: int) -> dict[str, Any]:
        """Returns the result after `done` steps, which rank 0 writes and reports.

        Raises:
            PreemptedError: a stop was requested during the evaluation or the baseline.
        """
        metrics = self.metrics or self.evaluate()  # the former if a step was taken
        if metrics is None:
            raise self.preempted(done)
        # It takes seconds, and is the same on every rank.
        table = self.step.table() if self.topology.is_chief else []
        for line in summary.stages(table):
            self.report.say(line)
        heartbeat.beat("reporting")
        found: dict[str, Any] = {"metrics": metrics, "stages": table}
        sent = network.bytes_sent() - self._sent_before
        found |= {"bytes_sent_per_step": self.step.bytes_sent, "network_bytes": sent or None}
        found |= self.step.results()
        results = result.compose(self.setup, self.layout, self.clock, done, found)
        results["workdir"] = str(self.run.workdir)
        if self.topology.is_chief:
            result.write(self.run.workdir, results)
            results["baseline"] = result.baseline(self.setup.data)
            result.write(self.run.workdir, results)
            self.report.say(summary.closing(results, self.experiment.objective.best))
        return results

    def close(self) -> None:
        """Leaves nothing running."""
        self.step.close()
        self.checkpoints.wait()
        self.stream.close()
        self.report.close()

    def _report_begin(self) -> None:
        """Prints the warnings and what runs where; adds a line to recovery.jsonl."""
        first, total = self.first, self.setup.total
        reported = self.experiment.objective.reported
        self.report = Report(self.run.workdir, self.topology.is_chief, first, total, reported)
        self.warnings += [
            f"{folder} {damage}; kept as {manifest.damaged_path(folder, damage).name}, "
            f"going on from step {first}"
            for folder, damage in self.checkpoints.damaged.items()
        ]
        self.warnings += self.checkpoints.changes
        for line in self.warnings:
            self.report.say(f"warning: {line}")
        self.report.say(
            summary.opening(self.experiment, self.layout, self.setup.data, self.state, first, total)
        )
        if self.topology.is_chief:  # beside the supervisor's lines
            event = {"event": "session", "time": time.time(), "monotonic": time.monotonic()}
            with (self.run.workdir / "recovery.jsonl").open("a") as file:
                file.write(
                    json.dumps({**event, "first": first, "ranks": self.topology.size}) + "\n"
                )

    def _report_step(self, values: Mapping[str, Any], rate: float, done: int) -> None:
        """Moves the progress bar; reports the first step, every `log_every`-th and the last."""
        self.report.advance(float(values["loss"]))
        is_last = done == self.last
        if not is_last and done != self.first + 1 and done % self.run.log_every:
            return
        batch = self.experiment.global_batch
        line = {
            "step": done,
            "epoch": done * batch / self.setup.data.num_train,
            "seconds": self.clock.training,
            **{name: float(values[name]) for name in self.reported if name in values},
            "learning_rate": rate,
            "examples_per_second": batch / (self.clock.recent() or math.inf),
        }
        self.report.step(line, is_last)

    def _must_save(self) -> bool:
        """Whether a checkpoint is due by time; rank 0 decides, as clocks differ."""
        seconds = time.monotonic() - self._saved_at
        is_by_time = self.topology.is_chief and not self.run.checkpoint_every
        return is_by_time and seconds > self.run.checkpoint_seconds


def last_step(stop_at_step: int, local_steps: int, total: int) -> int:
    """Returns the steps after which training ends: where all processes hold the same state."""
    rounds = math.ceil(stop_at_step / local_steps)
    return min(total, rounds * local_steps or total)
