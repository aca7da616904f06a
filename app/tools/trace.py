"""Implements `app trace`: draws one step of a pipeline, with its bubble measured and by formula."""

from collections.abc import Sequence
from pathlib import Path

from app.config import Experiment, Layout
from app.parallel import schedule
from app.parallel.pipeline import Span
from app.parallel.topology import Topology
from app.strategies.pipelined import PipelinedStep
from app.training.batch_stream import training_batches
from app.training.setup import open_run

WARM_STEPS = 2  # that compile; the step after them is drawn
NAMES = {"F": "forward", "B": "backward"}
FILLS = {"F": ("#2f6db3", "#8fbce6"), "B": ("#f0a030", "#f8d59b")}  # even, odd chunks
INKS = {"F": ("white", "black"), "B": ("black", "black")}
IDLE = "#eeeeee"
INCHES = 10.5  # width of the picture
NARROWEST = 0.012  # share of the step: a task that took less has no room for its number


def main(
    experiment: Experiment, layout: Layout, topology: Topology, data_dir: str, folder: Path
) -> None:
    """Writes trace.png and trace.svg of rank 0's pipeline, and prints a summary."""
    setup = open_run(experiment, layout, topology, data_dir)
    mine = topology.micro_batches(experiment.num_micro_batches)
    step = PipelinedStep(experiment, layout, setup.state, mine)
    # The same examples each time, so that no other length of a text is compiled.
    batches = list(training_batches(experiment, setup.data, topology, range(1)))
    for s in range(WARM_STEPS + 1):
        step.spans = []
        step(s, iter(batches), 1e-6)
    if not topology.is_chief:
        return
    spans, p, c, m = step.spans or [], layout.stages, layout.chunks, len(mine)
    measured, formula = bubble(spans, p), schedule.bubble(p, c, m)
    name = layout.schedule + (f" with {c} chunks a stage" if c > 1 else "")
    title = f"{name}: {p} stages, {m} micro-batches of {experiment.micro_batch}"
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "svg"):
        draw(
            spans, p, f"{title}; bubble {measured:.1%}, by formula {formula:.1%}",
            folder / f"trace.{suffix}",
        )  # fmt: skip
    print(f"{title}: bubble {measured:.1%} measured, {formula:.1%} by (P - 1) / (C M + P - 1)")
    print(f"at most {step.most_alive} micro-batches alive, by part; {folder / 'trace.png'}, .svg")


def bubble(spans: Sequence[Span], stages: int) -> float:
    """Returns the idle fraction of the stages' time, from the first begin to the last end."""
    seconds = max(s.end for s in spans) - min(s.begin for s in spans)
    return 1 - sum(s.end - s.begin for s in spans) / (stages * seconds)


def draw(spans: Sequence[Span], stages: int, title: str, path: Path) -> None:
    """Writes the picture, a row per stage, in the format of `path`'s suffix."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    begin = min(s.begin for s in spans)
    total = (max(s.end for s in spans) - begin) * 1e3
    figure = Figure(figsize=(INCHES, 1.5 + 0.55 * stages), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(stages), total, height=0.86, color=IDLE)
    for span in spans:
        left, width = (span.begin - begin) * 1e3, (span.end - span.begin) * 1e3
        kind, shade = span.task.kind, span.task.part // stages % 2
        axes.barh(
            span.stage, width, left=left, height=0.86, edgecolor="white", linewidth=0.5,
            color=FILLS[kind][shade], antialiased=False,
        )  # fmt: skip
        if width > NARROWEST * total:
            axes.text(
                left + width / 2, span.stage, str(span.task.micro_batch), ha="center",
                va="center_baseline", fontsize=11, color=INKS[kind][shade], clip_on=True,
            )  # fmt: skip
    axes.set_yticks(range(stages), [f"stage {s}" for s in range(stages)], fontsize=12)
    axes.set_ylim(stages - 0.5, -0.5)
    axes.set_xlim(0, total)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=11)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("milliseconds; each number is a micro-batch", fontsize=12)
    figure.suptitle(title, fontsize=14)
    shades = 1 + any(s.task.part >= stages for s in spans)
    patches = [
        Patch(color=FILLS[kind][i], label=name if shades == 1 else f"{name}, {chunks} chunk")
        for kind, name in NAMES.items()
        for i, chunks in enumerate(("even", "odd")[:shades])
    ]
    figure.legend(
        handles=[*patches, Patch(color=IDLE, label="idle: the bubble")],
        loc="outside lower center", ncols=len(patches) + 1, frameon=False, fontsize=11,
        handlelength=1.5, columnspacing=1.5,
    )  # fmt: skip
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(path, dpi=100)
