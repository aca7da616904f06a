"""Implements `app predict`: predicts a batch of items over the ranks of a job, and over stages.

    shard   0 | 1 | 2 | 3 | 4 ...      of the items in order
    rank    0   1   2   0   1

A batch has the same items on any number of ranks, and is padded to one size, so no number depends
on the layout. An item that cannot be read gets a row with its error.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from app.config import Experiment, Layout
from app.errors import UsageError
from app.inference import clients, generate, standard
from app.inference.forward import Forward
from app.inference.generate import Generator, Sampling
from app.inference.predictor import Predictor, Reader, TensorReader
from app.inference.shards import Shards
from app.objectives import Classification
from app.parallel import replicas
from app.parallel.topology import Topology
from app.reporting.report import terminal
from app.training import trained
from app.training.agreement import require_same, run_on_all_ranks
from app.training.trained import Trained
from input import items as inputs
from input.batches import DataSet
from input.items import Items
from input.raw import Limits

SPLIT = "split:"


@dataclasses.dataclass(frozen=True)
class Job:
    """A prediction: what is read, with which weights, and what is written.

    Attributes:
        source: a folder, a file or split:<name>.
        output: .jsonl or .csv.
        form, field: of a file (`input/items.py`).
        top: classes written for an item.
        weights: best, trained or average.
        batch: items computed at once.
        threads: cores of this process.
        limits: of an item.
        sampling: of words, where texts are continued.
    """

    source: str
    output: Path
    form: str | None
    field: str | None
    top: int
    weights: str
    batch: int
    threads: int
    limits: Limits
    sampling: Sampling = dataclasses.field(default_factory=Sampling)


def main(
    experiment: Experiment,
    layout: Layout,
    topology: Topology,
    folder: Path,
    data_dir: str,
    job: Job,
) -> None:
    """Predicts every item once, and writes the rows in the order of the items.

    Raises:
        UserError: on every rank, the same.
    """
    run = trained.restore(experiment, layout, topology, folder, data_dir)
    data = run.setup.data
    items = run_on_all_ranks(lambda: open_items(job, experiment, data, data_dir))
    require_same("input", {"digest": items.digest, "items": len(items)})
    top = min(job.top, data.num_classes or 1)
    columns = ["index", "item", "label", "error"]
    continues = generate.is_of_next_words(experiment.objective, data)
    columns += generate.COLUMNS if continues else experiment.objective.columns(top)
    shards = Shards(job.output, len(items), job.batch, columns)
    with run.weights(job.weights) as weights, contextlib.ExitStack() as stack:
        lanes = max(1, job.threads // layout.stages)
        state = run.setup.state
        given = (items, data, shards, job.limits)
        are_classes = isinstance(experiment.objective, Classification)
        reader = Reader(*given) if data.kind else TensorReader(*given, are_classes)
        run_on_all_ranks(
            lambda: claim(shards, job, run, items, weights, stack) if topology.is_chief else None
        )
        # As rank 0 finds them: another rank may look when one has been written since.
        todo = replicas.broadcast_json(shards.todo())
        mine = todo[topology.rank :: topology.size]
        begin = time.monotonic()
        with progress(topology, len(mine)) as bar:
            if continues:
                generator = Generator(reader, state, data, job.sampling, bar)
                run_on_all_ranks(lambda: generator.run(mine))
            else:
                forward = Forward(state, data.input_spec, lanes, experiment.objective)
                predictor = Predictor(reader, experiment.objective, data.classes, top, bar)
                run_on_all_ranks(lambda: predictor.run(forward, mine))
        # While the lock is held: another job would join what this one removes.
        counts = run_on_all_ranks(lambda: shards.join() if topology.is_chief else None)
    if counts:
        new = sum(len(shards.indices(shard)) for shard in todo)
        line = summary(counts, new, time.monotonic() - begin)
        is_standard = job.output.name == standard.OUTPUT  # it is passed on
        target = "" if is_standard else f"; written to {job.output}"
        print(f"{line}{target}", file=sys.stderr, flush=True)


def open_items(job: Job, experiment: Experiment, data: DataSet, data_dir: str) -> Items:
    """Opens what --input names.

    Raises:
        InputError: it cannot be predicted.
        UsageError: the data are not of a kind that clients have.
    """
    clients.require(data, experiment.objective)
    own = f"{SPLIT}{data.evaluation_split}"
    if not data.kind:
        if job.source != own:
            raise UsageError(
                f"--input={job.source}: clients of {type(data).__name__} send tensors, so only its "
                f"own examples can be read here: give --input={own}."
            )
        return inputs.Numbered(data.num_evaluation, data.digest)
    if not job.source.startswith(SPLIT):
        field = job.field or getattr(experiment.data, "text_field", None)
        return inputs.open_items(job.source, data.kind, job.form, field)
    name = job.source.removeprefix(SPLIT)
    source = {data.evaluation_split: data.held_out}.get(name)
    if source is None:
        try:
            other = dataclasses.replace(experiment.data, evaluation_split=name)  # type: ignore[type-var]
        except (TypeError, ValueError):
            raise UsageError(
                f"--input={job.source}: these data have only the split {data.evaluation_split}; "
                "only TFDS sets have others."
            ) from None
        source = other.open(data_dir).held_out
    return inputs.Split(source, f"{name} {len(source)} {data.digest}")


def claim(
    shards: Shards, job: Job, run: Trained, items: Items, weights: str, stack: contextlib.ExitStack
) -> None:
    """Claims the shards' folder for as long as `stack` lasts, and records what is predicted.

    Raises:
        UsageError: the folder is another job's, or cannot be written.
    """
    about = {"input": items.digest, "items": len(items), **dataclasses.asdict(job.limits)}
    if generate.is_of_next_words(run.setup.experiment.objective, run.setup.data):
        about |= dataclasses.asdict(job.sampling)
    about |= {"top": job.top, "batch": job.batch, "weights": weights, "step": run.step}
    shards.claim(about | {"weights_sha256": run.manifest()["weights_sha256"]}, stack)


def progress(topology: Topology, shards: int) -> Any:
    """Returns a progress bar over rank 0's shards; other ranks have as many, or one fewer."""
    file = terminal() if topology.is_chief else None
    return tqdm(total=shards, unit="shard", file=file, leave=False, disable=file is None)


def summary(counts: Sequence[int], new: int, seconds: float) -> str:
    """Returns the last line that is printed.

    Args:
        counts: of all rows (`shards.count`).
        new: items that this command predicted; others were done before.
        seconds: that it took.
    """
    items, errors, labelled, right = counts
    line = f"{items:,} items"
    line += f", {items - new:,} of them done before," if new < items else ""
    line += f" in {seconds:.1f} s ({new / seconds:.1f} a second)"
    line += f"; {errors:,} could not be read" if errors else ""
    line += f"; accuracy {right / labelled:.4f} of {labelled:,} with labels" if labelled else ""
    return line
