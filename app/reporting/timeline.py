"""Draws a pipeline's step: when each stage ran which micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from app.parallel.pipeline import Span

COLORS = {"F": ("#4c78a8", "#9ecae9"), "B": ("#54a24b", "#b5e3a0")}  # even, odd chunks


def bubble(spans: Sequence[Span], stages: int) -> float:
    """Returns the idle fraction of the stages' time, from the first begin to the last end."""
    seconds = max(s.end for s in spans) - min(s.begin for s in spans)
    return 1 - sum(s.end - s.begin for s in spans) / (stages * seconds)


def draw(spans: Sequence[Span], stages: int, title: str, path: Path) -> None:
    """Writes the picture, a row per stage, in the format of `path`'s suffix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    begin = min(s.begin for s in spans)
    figure = Figure(figsize=(14, 1.2 + 0.7 * stages), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for span in spans:
        left, width = (span.begin - begin) * 1e3, (span.end - span.begin) * 1e3
        chunk = span.task.part // stages
        axes.barh(
            span.stage, width, left=left, height=0.9, edgecolor="white", linewidth=0.6,
            color=COLORS[span.task.kind][chunk % 2],
        )  # fmt: skip
        axes.text(
            left + width / 2, span.stage, str(span.task.micro_batch), ha="center", va="center",
            fontsize=8, clip_on=True,
        )  # fmt: skip
    axes.set_yticks(range(stages), [f"stage {s}" for s in range(stages)])
    axes.set_ylim(stages - 0.5, -0.5)
    axes.set_xlim(0, (max(s.end for s in spans) - begin) * 1e3)
    axes.set_xlabel("milliseconds; the number is the micro-batch")
    axes.set_title(title)
    names = {"F": "forward", "B": "backward"}
    axes.legend(
        handles=[Patch(color=COLORS[k][0], label=n) for k, n in names.items()],
        loc="upper left", bbox_to_anchor=(1, 1),
    )  # fmt: skip
    figure.savefig(path, dpi=120)
