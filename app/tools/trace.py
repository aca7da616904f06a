"""Implements `app trace`: draws one step of a pipeline, with its bubble measured and by formula."""

from pathlib import Path

from app.config import Experiment, Layout
from app.parallel import schedule
from app.parallel.topology import Topology
from app.reporting import timeline
from app.strategies.pipelined import PipelinedStep
from app.training.batch_stream import training_batches
from app.training.setup import open_run

WARM_STEPS = 2  # that compile; the step after them is drawn


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
    measured, formula = timeline.bubble(spans, p), schedule.bubble(p, c, m)
    name = layout.schedule + (f" with {c} chunks a stage" if c > 1 else "")
    title = f"{name}: {p} stages, {m} micro-batches of {experiment.micro_batch}"
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "svg"):
        timeline.draw(
            spans, p, f"{title}; bubble {measured:.1%}, by formula {formula:.1%}",
            folder / f"trace.{suffix}",
        )  # fmt: skip
    print(f"{title}: bubble {measured:.1%} measured, {formula:.1%} by (P - 1) / (C M + P - 1)")
    print(f"at most {step.most_alive} micro-batches alive, by part; {folder / 'trace.png'}, .svg")
