"""Draws and tabulates runs side by side, as pictures and as one HTML page."""

import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from app.tools.rules import Conditions, Rule

POINTS_BEHIND = 0.02  # of accuracy; the page explains a rule that is further behind
WARM_STEPS = 10  # not counted in the throughput: compiling, and a round's first mean
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2",
          "#7f7f7f", "#bcbd22")  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        rule: of its updates.
        result: the content of result.json.
        train: lines of metrics.jsonl, a step each.
        evaluated: the same for evaluations, with the seconds of training before each.
    """

    rule: Rule
    result: dict[str, Any]
    train: list[dict[str, Any]]
    evaluated: list[dict[str, Any]]

    @property
    def accuracy(self) -> float:
        """The accuracy at the end."""
        return float(self.evaluated[-1]["accuracy"])

    @property
    def throughput(self) -> float:
        """The examples a second, once everything is compiled."""
        first, last = self.train[min(WARM_STEPS, len(self.train) // 2)], self.train[-1]
        seconds = last["seconds"] - first["seconds"]
        batch = self.result["experiment"]["global_batch"]
        return float((last["step"] - first["step"]) * batch / seconds) if seconds > 0 else 0.0

    @property
    def seconds(self) -> float:
        """The seconds of training, without evaluations."""
        return float(self.train[-1]["seconds"])

    @property
    def wire(self) -> float | None:
        """The bytes sent between all processes in a step; None if they could not be counted."""
        sent = self.result["network_bytes"]
        return sent / self.result["steps"] if sent else None

    @property
    def staleness(self) -> dict[int, int]:
        """The number of updates by staleness; empty if the rule has none."""
        return {int(n): count for n, count in self.result.get("staleness", {}).items()}


def folder_name(rule: Rule) -> str:
    """Returns the name of a rule's folder."""
    return rule.name.replace(":", "-")


def read(rule: Rule, folder: Path) -> Trained:
    """Reads a finished run, below the folder of all."""
    workdir = folder / folder_name(rule)
    result = json.loads((workdir / "result.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    split = next(iter(result["metrics"]))
    train = [line for line in lines if line["event"] == "train"]
    seconds = {line["step"]: line["seconds"] for line in train}
    evaluated = [
        {**line, "seconds": seconds[line["step"]]}
        for line in lines
        if line["event"] == split and line["step"] in seconds
    ]
    return Trained(rule, result, train, evaluated)


def line(run: Trained) -> str:
    """Returns a run's figures as a line."""
    wire = f", {run.wire / 1e6:.1f} MB a step" if run.wire else ""
    return (
        f"accuracy {run.accuracy:.4f}, {run.throughput:.1f} examples/s, "
        f"{run.seconds:.0f} s of training{wire}"
    )


def write(runs: Sequence[Trained], conditions: Conditions, folder: Path) -> None:
    """Writes compare.html, compare.json, compare.png and compare.svg."""
    rows = table(runs, conditions)
    (folder / "compare.json").write_text(json.dumps(rows, indent=1) + "\n")
    picture = curves(runs)
    for suffix in ("png", "svg"):
        picture.savefig(folder / f"compare.{suffix}", dpi=110)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True).get_template("comparison.html")
    first = runs[0].result
    config = json.loads((folder / folder_name(runs[0].rule) / "config.json").read_text())
    (folder / "compare.html").write_text(
        page.render(
            runs=runs, rows=rows, conditions=conditions, experiment=first["experiment"],
            steps=first["steps"], split=next(iter(first["metrics"])),
            target=target_of(runs, conditions), curves=svg(picture), bars=svg(bars(runs)),
            behind=[row for row in rows if row["behind"] > POINTS_BEHIND], colors=COLORS,
            limit=POINTS_BEHIND, warm=WARM_STEPS, versions=config["versions"],
        )
    )  # fmt: skip


def target_of(runs: Sequence[Trained], conditions: Conditions) -> float:
    """Returns the accuracy whose time is reported: as given, or a point below the first rule's."""
    return conditions.target or runs[0].accuracy - 0.01


def table(runs: Sequence[Trained], conditions: Conditions) -> list[dict[str, Any]]:
    """Returns a row for each rule; the others are compared with the first."""
    base, target, rows = runs[0], target_of(runs, conditions), []
    for run in runs:
        # Of training before the first evaluation that reaches the target.
        seconds = next((e["seconds"] for e in run.evaluated if e["accuracy"] >= target), None)
        hours = None if seconds is None else seconds / 3600 * conditions.workers
        updates = [n for n, count in run.staleness.items() for _ in range(count)]
        rows.append(
            {
                "rule": run.rule.name,
                "accuracy": run.accuracy,
                "behind": base.accuracy - run.accuracy,
                "seconds": run.seconds,
                "seconds_to_target": seconds,
                "cost_to_target": hours * conditions.price if hours is not None else None,
                "examples_per_second": run.throughput,
                "speed": run.throughput / base.throughput if base.throughput else None,
                "bytes_per_step": run.wire,
                "bytes_sent_per_step": run.result["bytes_sent_per_step"],
                "mean_staleness": statistics.mean(updates) if updates else None,
                "most_staleness": max(updates, default=None),
                "changes_numbers": run.result["changes_numbers"],
                "risk": run.rule.risk,
            }
        )
    return rows


def curves(runs: Sequence[Trained]) -> Any:
    """Draws loss and accuracy, over examples and over seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for i, run in enumerate(runs):
        batch = run.result["experiment"]["global_batch"]
        wide = max(1, len(run.train) // 25)
        for column, (name, unit) in enumerate((("step", batch), ("seconds", 1))):
            losses = _smooth([line["loss"] for line in run.train], wide)
            xs = [line[name] * unit for line in run.train]
            style = {"color": COLORS[i % len(COLORS)], "label": run.rule.name}
            axes[0, column].plot(xs, losses, linewidth=1.4, **style)
            xs = [line[name] * unit for line in run.evaluated]
            scores = [line["accuracy"] for line in run.evaluated]
            axes[1, column].plot(xs, scores, linewidth=1.4, marker="o", markersize=3.5, **style)
    axes[0, 0].set_ylabel("training loss (moving mean)")
    axes[1, 0].set_ylabel("accuracy of the evaluation split")
    axes[1, 0].set_xlabel("training examples")
    axes[1, 1].set_xlabel("seconds of training")
    for ax in axes.flat:
        ax.grid(alpha=0.25)
    axes[0, 0].legend(loc="upper right")
    return figure


def bars(runs: Sequence[Trained]) -> Any:
    """Draws throughput, bytes on the wire and staleness."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    speed, wire, stale = figure.subplots(1, 3)
    names = [run.rule.name for run in runs]
    colors = [COLORS[i % len(COLORS)] for i in range(len(runs))]
    speed.barh(names, [run.throughput for run in runs], color=colors)
    speed.set_xlabel("examples a second")
    wire.barh(names, [(run.wire or 0) / 1e6 for run in runs], color=colors)
    wire.set_xlabel("MB a step between all processes")
    for ax in (speed, wire):
        ax.invert_yaxis()
        ax.bar_label(ax.containers[0], fmt="%.3g", padding=3)
        ax.margins(x=0.18)
    stale_runs = [(i, run) for i, run in enumerate(runs) if run.staleness]
    width = 0.8 / max(1, len(stale_runs))
    for bar, (i, run) in enumerate(stale_runs):
        total = sum(run.staleness.values())
        left = [n + (bar - len(stale_runs) / 2 + 0.5) * width for n in run.staleness]
        heights = [100 * count / total for count in run.staleness.values()]
        stale.bar(left, heights, width, color=colors[i], label=run.rule.name)
    stale.set_xlabel("staleness: updates by others meanwhile")
    stale.set_ylabel("% of updates")
    stale.xaxis.get_major_locator().set_params(integer=True)
    stale.margins(y=0.25)
    if stale_runs:
        stale.legend(loc="upper right")
    else:
        stale.text(0.5, 0.5, "none of these rules has any", ha="center", transform=stale.transAxes)
    return figure


def svg(figure: Any) -> str:
    """Returns a figure as an SVG element for a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def _smooth(values: Sequence[float | None], wide: int) -> list[float]:
    """Returns means of each value and up to `wide` - 1 before it; None is left out."""
    means = []
    for i in range(len(values)):
        known = [v for v in values[max(0, i + 1 - wide) : i + 1] if v is not None]
        means.append(statistics.mean(known) if known else float("nan"))
    return means
