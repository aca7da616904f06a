"""Training steps on a fixed set of ranks, from one step to the last or to what stops them.

    agree, restore
    for each step:  step | finite? | report | vote | evaluate? | save? | stop?
    result

The ranks never change here: where they may, a run is several sessions.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from app import config
from app.config import Experiment, Layout
from app.errors import MembershipChangedError, NumbersError, PreemptedError, UserError
from app.launch import private_network
from app.parallel import replicas, straggler
from app.parallel.topology import Topology
from app.recovery import heartbeat, manifest, preemption
from app.reporting import summary as words
from app.reporting.clock import Clock
from app.reporting.report import Report
from app.training import agreement as vote
from app.training import baseline, divergence, strategy
from app.training import data as meaning
from app.training import result as outcome
from app.training import setup as opening
from app.training.agreement import Wishes
from app.training.batch_stream import Feed
from app.training.checkpoint import Checkpoints
from app.training.evaluation import Evaluator
from app.training.optimization import learning_rate
from app.training.setup import Opened
from app.training.state import State

Metrics = dict[str, dict[str, float]]  # by split


@dataclass(frozen=True)
class Run:
    """How a run is watched and kept; changes no number.

    Attributes:
        reference, settings: how the experiment was named, for config.json.
        checkpoint_every: steps; 0: every `checkpoint_seconds`.
        evaluate_every: steps; 0: at the end only.
        keep: checkpoints, beside the best.
        stop_at_step: stop there, to be continued; 0: go to the end.
        log_every: steps between lines of metrics.jsonl.
        log_examples: write the ids of every step's examples, a file a rank.
        compare_every: steps between comparisons of the replicas; 0: before saves only.
        commit_every: steps between commits to memory, of an elastic run.
        repair: give ranks that differ the majority's state, instead of stopping.
    """

    workdir: Path
    data_dir: str
    reference: str = ""
    settings: tuple[str, ...] = ()
    checkpoint_every: int = 0
    checkpoint_seconds: float = 600.0
    evaluate_every: int = 0
    keep: int = 3
    stop_at_step: int = 0
    log_every: int = 10
    log_examples: bool = False
    compare_every: int = 50
    commit_every: int = 10
    repair: bool = False


class Session:
    """The job's ranks at work.

    Args:
        opened: data and state.
        layout: with the processes of this session.
        where: this one among them.
        run: how it is watched.
        clock: of the whole run.
        wishes: what else the ranks vote on at each step, beside stopping and saving.
        commit: keeps the state in memory, every `run.commit_every` steps.

    Raises:
        UserError: the same on every rank: they have not the same of something.
    """

    def __init__(
        self, opened: Opened, layout: Layout, where: Topology, run: Run, clock: Clock,
        wishes: Wishes | None = None, commit: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        self.opened, self.layout, self.where = opened, layout, where
        self.run, self.clock, self.commit = run, clock, commit
        self.experiment: Experiment = opened.experiment
        self.state: State = opened.state
        opening.agree_on("set-up", opened.facts())
        opening.agree_on_kernels(layout.exact)
        about = {
            "experiment": config.as_dict(self.experiment),
            "versions": replicas.versions(),
            "meaning": meaning.of(opened.data),
            "data": opening.data_facts(opened.data),
        }
        folder = run.workdir / "checkpoints"
        self.checkpoints = Checkpoints(folder, self.state, where, run.keep, about)
        evaluated = opened.mirror or self.state
        self.evaluator = Evaluator(evaluated, opened.data, self.experiment.micro_batch, where)
        self._saved_at = time.monotonic()
        self.wishes = {"stop": preemption.is_asked, "save": self._is_due, **(wishes or {})}
        self.metrics: Metrics = {}
        self.warnings: list[str] = []  # to be said as it begins
        rounds = math.ceil(run.stop_at_step / self.experiment.update.local_steps)
        stop = rounds * self.experiment.update.local_steps  # where all hold the same
        self.last = min(opened.total, stop or opened.total)

    def train(self, first: int) -> dict[str, Any]:
        """Trains from `first` steps done to the last; returns what result.json holds.

        Raises:
            PreemptedError: told to stop; it is saved.
            NumbersError: a step that is not finite, and may not be skipped.
            CheckpointError: the last one could not be written.
            DivergedError: the replicas differ.
            MembershipChangedError: the ranks are about to change; it is committed.
            InputError: on the rank that meets an example it cannot read.
        """
        self.begin(first)
        try:
            for s in range(first, self.last):
                self.advance(s)
                if self.step.is_round(s + 1):
                    self.between(s + 1, vote.wanted(self.wishes))
            return self.result(max(first, self.last))
        finally:
            self.close()

    def begin(self, first: int) -> None:
        """Makes what steps from `first` on need, and says so."""
        opening.together(self.checkpoints.set_aside)
        self.first = first
        self._sent = private_network.traffic()
        missing = self.checkpoints.missing
        rest = range(first + len(missing), self.last)
        order = [*missing, *rest] if missing else rest
        mine = self.where.micro_batches(self.experiment.num_micro_batches)
        args = (self.experiment, self.layout, self.state, mine, order)
        self.step = strategy.make_step(*args, furthest=rest.start - 1)
        self.clock.in_bursts = self.step.comes_in_bursts
        self.report = Report(self.run.workdir, self.where.is_chief, first, self.opened.total)
        for folder, damage in self.checkpoints.damaged.items():
            kept = f"kept as {manifest.aside(folder, damage).name}"
            self.warnings.append(f"{folder} {damage}; {kept}, going on from step {first}")
        self.warnings += self.checkpoints.changes
        for line in self.warnings:
            self.report.say(f"warning: {line}")
        told = (self.experiment, self.layout, self.opened.data, self.state, first)
        self.report.say(words.run(*told, self.opened.total))
        self._note_begin(first)
        batches = opening.training_batches(self.experiment, self.opened.data, self.where, order)
        log = self.run.workdir / f"examples-{self.where.rank}.jsonl"
        self.feed = Feed(batches, mine, order, log if self.run.log_examples else None)
        if first < self.last or not self.checkpoints.is_evaluated:
            self.clock.begin()  # else its seconds are among those that were counted

    def compute(self, s: int) -> tuple[dict[str, Any], float]:
        """Step `s`, from data to weights; returns its metrics and its learning rate."""
        e, data = self.experiment, self.opened.data
        rate = learning_rate(e.optimization, s, e.global_batch, data.num_train, self.opened.total)
        return {name: v.numpy() for name, v in self.step(s, self.feed, rate).items()}, rate

    def advance(self, s: int) -> None:
        """Step `s`, timed, judged and reported."""
        e, done = self.experiment, s + 1
        heartbeat.beat("computing", s, self.where.rank)
        self.clock.start()
        values, rate = self.compute(s)
        self.clock.stop()
        heartbeat.beat("between", done)
        if self.step.is_round(done):
            self.judge(values, done)
        self.report.advance(float(values["loss"]))
        if s == self.first and not self.layout.workers:
            straggler.start(self.where.rank)  # what it compiles is done
        is_last = done == self.last
        if is_last or s == self.first or done % self.run.log_every == 0:
            told = ("loss", "accuracy", "gradient_norm", "staleness")
            numbers = {n: float(values[n]) for n in told if n in values}
            epoch = done * e.global_batch / self.opened.data.num_train
            speed = e.global_batch / (self.clock.recent() or math.inf)
            self.report.step(
                {"step": done, "epoch": epoch, "seconds": self.clock.training, **numbers,
                 "learning_rate": rate, "examples_per_second": speed}, is_last,
            )  # fmt: skip

    def judge(self, values: Mapping[str, Any], done: int) -> None:
        """Every rank sees the same sums, so every rank stops or none does."""
        if values["finite"] or values["skipped"]:  # the latter for the float16 loss scale
            return
        last = self.feed.ids if self.step.examples is None else self.step.examples
        ids = {place: i.numpy().tolist() for place, i in last.items()}
        numbers = {n: float(values[n]) for n in ("loss", "gradient_norm")}
        path = self.run.workdir / "nonfinite.jsonl"
        line = {"step": done, "rank": self.where.rank, **_told(numbers), "micro_batches": ids}
        path.parent.mkdir(parents=True, exist_ok=True)  # may be another machine than rank 0's
        with path.open("a") as file:  # a line is one write, so ranks do not mix
            file.write(json.dumps(line) + "\n")
        update, skips = self.experiment.update, int(self.state.skips)
        told = (
            f"step {done}: loss {numbers['loss']} and gradient norm {numbers['gradient_norm']} "
            f"must be finite; no weight was changed by this step, its examples are in {path}"
        )
        if update.local_steps > 1:
            told = (
                f"one of the {update.local_steps} local steps up to step {done}: loss "
                f"{numbers['loss']} and gradient norm {numbers['gradient_norm']} must be finite; "
                f"the last one's examples are in {path}"
            )
        if update.on_nonfinite == "skip" and skips <= update.skip_budget:
            self.report.say(
                f"warning: {told} ({skips} of {update.skip_budget} that may be skipped)"
            )
            return
        way = "lower optimization.learning_rate or lengthen optimization.warmup_epochs"
        if update.on_nonfinite == "skip":
            told += f"; more than update.skip_budget={update.skip_budget} of them"
        else:
            way += ", or set update.on_nonfinite=skip"
        raise NumbersError(f"{told}. {way.capitalize()}.").on_every_rank(self.where.is_chief)

    def between(self, done: int, wishes: set[str]) -> None:
        """What follows a step, or a round: looking, saving, stopping."""
        run, is_last, self.metrics = self.run, done == self.last, {}
        before = done - self.experiment.update.local_steps  # the round before ended there

        def is_due(every: int) -> bool:
            return bool(every) and done // every > before // every

        is_asked = "stop" in wishes
        if not is_asked and (is_last or is_due(run.evaluate_every)):
            metrics = self.evaluate()
            is_asked = metrics is None
            if metrics:
                self.metrics = metrics
                self.report.evaluation(done, metrics)
        is_saved = is_last or is_asked or "save" in wishes or is_due(run.checkpoint_every)
        repaired = None
        if is_saved or is_due(run.compare_every):
            repaired = divergence.check(self.state, self.where, done, run.repair)
            if repaired:
                self.report.say(f"warning: {repaired}")
        if is_saved:
            self.save(done, is_awaited=is_last or is_asked)
        has_changed = "change" in wishes and not is_last
        if self.commit and (has_changed or repaired or is_due(run.commit_every)):
            self.commit(done)
        if has_changed and not is_asked:
            raise MembershipChangedError
        if is_asked:
            raise self.preempted(done)

    def preempted(self, done: int) -> UserError:
        """The end of a run that is to stop: no result, and an earlier one as it was."""
        return PreemptedError(
            f"stopped after step {done} of {self.opened.total} and saved: the same command with "
            f"--workdir={self.run.workdir} goes on"
        ).on_every_rank(speaker=self.where.is_chief)

    def save(self, done: int, is_awaited: bool) -> None:
        """Begins a checkpoint; waits for the last one, which must succeed."""
        heartbeat.beat("saving")
        self._saved_at = time.monotonic()
        metrics = self.metrics.get(self.evaluator.split, {})
        error = self.checkpoints.save(done, metrics, self.step.missing(), self.clock.counted())
        if is_awaited:
            opening.together(lambda: _must(self.checkpoints.wait()))
        elif error:
            self.report.say(f"warning: {error}")
        if self.where.is_chief:
            self.report.event("checkpoint", {"step": done, "stall": self.checkpoints.stall})

    def evaluate(self) -> Metrics | None:
        """Metrics of the weights and, if they are kept, of their moving averages."""
        if self.opened.mirror:
            self.opened.mirror.assign(self.state.snapshot())
        return evaluate_weights(self.evaluator, self.opened.mirror or self.state)

    def result(self, done: int) -> dict[str, Any]:
        """The run as it stands, which rank 0 writes.

        Raises:
            PreemptedError: stopped while it is evaluated.
        """
        metrics = self.metrics or self.evaluate()  # the former if a step was run
        if metrics is None:
            raise self.preempted(done)
        # It takes seconds, and the ranks' tables are alike.
        table = self.step.table() if self.where.is_chief else []
        for line in words.stages(table):
            self.report.say(line)
        heartbeat.beat("reporting")
        found: dict[str, Any] = {"metrics": metrics, "stages": table}
        sent = private_network.traffic() - self._sent
        found |= {"bytes_sent_per_step": self.step.bytes_sent, "network_bytes": sent or None}
        found |= self.step.results()
        result = outcome.compose(self.opened, self.layout, self.clock, done, found)
        result["workdir"] = str(self.run.workdir)
        if self.where.is_chief:
            outcome.write(self.run.workdir, result)
            result["baseline"] = baseline.compute(self.opened.data)
            outcome.write(self.run.workdir, result)
            self.report.say(words.closing(result))
        return result

    def close(self) -> None:
        """Leaves nothing running."""
        self.step.close()
        self.checkpoints.wait()
        self.feed.close()
        self.report.close()

    def _note_begin(self, first: int) -> None:
        """A line in recovery.jsonl, beside the supervisor's."""
        if self.where.is_chief:
            times = {"time": time.time(), "monotonic": time.monotonic()}
            line = {"event": "session", **times, "first": first, "ranks": self.where.size}
            with (self.run.workdir / "recovery.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def _is_due(self) -> bool:
        """Rank 0 alone says when time is up: clocks differ."""
        seconds = time.monotonic() - self._saved_at
        return (
            self.where.is_chief
            and not self.run.checkpoint_every
            and seconds > self.run.checkpoint_seconds
        )


def evaluate_weights(evaluator: Evaluator, state: State) -> Metrics | None:
    """Metrics of the weights and, if they are kept, of their moving averages, by split.

    None if a rank was asked to stop on the way.
    """
    found = {evaluator.split: evaluator()}
    if state.has_average:
        with state.averaged():
            found[f"{evaluator.split}_average"] = evaluator()
    metrics = {split: values for split, values in found.items() if values}
    return metrics if len(metrics) == len(found) else None


def _must(error: Exception | None) -> None:
    if error:
        raise error


def _told(numbers: Mapping[str, float]) -> dict[str, float | str]:
    """JSON has no infinity."""
    finite = {n: v for n, v in numbers.items() if tf.math.is_finite(v)}
    return {n: finite.get(n, str(v)) for n, v in numbers.items()}
