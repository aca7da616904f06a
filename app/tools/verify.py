"""Implements `app verify`: compares an experiment on many layouts with its serial run.

The serial run has one stage, and every process computes every micro-batch. After a few steps these
are compared, each by the norm of the difference over the norm: the loss of each step, the gradient
of the first (read from the optimizer's first slot), and how each weight (weighted with that
gradient) and each moving statistic has moved. Of the tensors the one that differs most counts, so
that a small one cannot hide among large ones. Layouts add in different orders, so agreement to
rounding is required; with `--exact` the same bits.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from app.config import Experiment, Layout
from app.errors import NumbersError
from app.parallel import replicas
from app.parallel.placement import Placement
from app.parallel.topology import Topology
from app.strategies import partition
from app.training.agreement import run_on_all_ranks
from app.training.batch_stream import training_batches
from app.training.data import open_data, pretrained_weights
from app.training.state import State
from app.training.step import make_step
from input.batches import DataSet

STEPS = 3
# Of loss, gradient, movement.
TOLERANCES = {"float32": (1e-4, 1e-3, 1e-1), "bfloat16": (2e-2, 1e-1, 5e-1)}
TOLERANCES["float16"] = TOLERANCES["bfloat16"]
# Of the whole gradient's norm: a tensor with less is rounding (a key's bias has no gradient).
FLOOR = 1e-5


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of training on a layout.

    Attributes:
        losses: of each step.
        gradients: of the first step, up to one factor, by weight.
        moves: of weights and moving statistics, in all steps, by name.
        is_finite: whether every step was, and none was skipped.
        sha256: of the weights.
    """

    losses: np.ndarray
    gradients: dict[str, np.ndarray]
    moves: dict[str, np.ndarray]
    is_finite: bool
    sha256: str


def layouts(wanted: Layout, num_micro_batches: int, num_blocks: int) -> Iterator[Layout]:
    """Yields the layouts to compare: many combinations, the serial run first."""
    serial = Layout(exact=wanted.exact)
    yield serial
    for processes in sorted({1, wanted.processes}):
        micro_batches = num_micro_batches // processes
        for stages in sorted({1, 2, wanted.stages}):
            if stages > min(num_blocks, wanted.stages):
                continue
            one = dataclasses.replace(serial, processes=processes, stages=stages)
            if one != serial:
                yield one
            if stages > 1:
                yield dataclasses.replace(one, recompute=True)
            if wanted.tensor > 1:
                yield dataclasses.replace(one, tensor=wanted.tensor)
            if stages > 1:
                yield dataclasses.replace(one, schedule="gpipe")
            chunks = 2
            fits = not num_micro_batches % processes and not micro_batches % stages
            if stages > 1 and fits and stages * chunks <= num_blocks:
                yield dataclasses.replace(one, chunks=chunks)


def main(experiment: Experiment, wanted: Layout, topology: Topology, data_dir: str) -> None:
    """Prints a line for each layout, on rank 0.

    Raises:
        NumbersError: on every rank, if a layout does not agree with the serial run.
    """
    data = open_data(experiment, data_dir)
    source = run_on_all_ranks(lambda: pretrained_weights(experiment, data, data_dir))
    num_blocks = len(experiment.model.blocks(experiment.objective.num_outputs(data)))
    costs = partition.measure(experiment, topology, data)
    tolerances = TOLERANCES[experiment.precision]
    serial: Outcome | None = None
    failed = []
    if topology.is_chief:
        print(f"{'layout':44} {'loss':>9} {'gradient':>9} {'movement':>9}")
    for layout in layouts(wanted, experiment.num_micro_batches, num_blocks):
        placement = partition.place(experiment, layout, topology, data, costs)
        found = train(experiment, layout, topology, data, placement, source)
        serial = serial or found
        differences = compare(serial, found)
        excess = {n: d / t for (n, d), t in zip(differences.items(), tolerances, strict=True)}
        agrees = found.sha256 == serial.sha256 if wanted.exact else max(excess.values()) <= 1
        agrees = all(replicas.all_gather_scalar(float(agrees and found.is_finite)))
        if not agrees:
            failed.append(describe(layout))
        if topology.is_chief:
            figures = " ".join(f"{d:9.1e}" for d in differences.values())
            bits = f"  {found.sha256[:16]}" if wanted.exact else ""
            worst = max(excess, key=lambda name: excess[name])
            cause = f"most in {worst}" if found.is_finite else "not finite"
            verdict = "pass" if agrees else f"FAIL, {cause}"
            print(f"{describe(layout):44} {figures}  {verdict}{bits}", flush=True)
    required = "the same bits" if wanted.exact else "at most {:g}, {:g}, {:g}".format(*tolerances)
    if failed:
        raise NumbersError(
            f"{len(failed)} layouts differ from the serial run by more than allowed ({required}): "
            f"{'; '.join(failed)}. A block that is not a function of (x, training, seed) is the "
            "usual cause."
        ).on_every_rank(speaker=topology.is_chief)
    if topology.is_chief:
        print(f"every layout agrees with the serial run ({required}), {STEPS} steps")


def train(
    experiment: Experiment,
    layout: Layout,
    topology: Topology,
    data: DataSet,
    placement: Placement,
    source: Path | None,
) -> Outcome:
    """Trains STEPS steps; in a layout of one process every rank computes all of them."""
    state = run_on_all_ranks(lambda: State.of(experiment, data, placement, source))
    own = topology if layout.processes > 1 else Topology()
    mine = own.micro_batches(experiment.num_micro_batches)
    step = make_step(experiment, layout, state, mine, range(STEPS))
    batches = training_batches(experiment, data, own, range(STEPS))
    total = experiment.total_steps(data.num_train)
    before = {name: v.numpy() for name, v in state.weights.items()}
    losses, gradients, is_finite = [], {}, True
    for s in range(STEPS):
        o, g = experiment.optimization, experiment.global_batch
        rate = o.rate_at(s, g, data.num_train, max(total, STEPS))
        metrics = step(s, batches, rate)
        losses.append(float(metrics["loss"]))
        is_finite &= bool(metrics["finite"])
        if s == 0:
            gradients = first_gradients(state, before)
    moves = {name: v.numpy() - before[name] for name, v in state.weights.items()}
    return Outcome(np.array(losses), gradients, moves, is_finite, state.sha256())


def first_gradients(state: State, before: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Reads the gradients off the state after one step, up to one factor, by weight.

    They are in the optimizer's first slot; where it has none, a weight has moved by its gradient.
    """
    if not state.optimizer.slots:
        trainable = {name for part in state.parts for name in part.names}
        return {n: v.numpy() - before[n] for n, v in state.weights.items() if n in trainable}
    slot = state.optimizer.slots[0] + "/"
    named = state.state_dict().items()
    return {n.removeprefix(slot): v.numpy() for n, v in named if n.startswith(slot)}


def compare(serial: Outcome, found: Outcome) -> dict[str, float]:
    """Returns how much the loss, the worst gradient and the worst movement differ, by name.

    Each is the maximum over the ranks; the names are of the worst tensors on this rank.
    """
    gradients, floor = serial.gradients, FLOOR * norm(*serial.gradients.values())
    rounding = {name for name, g in gradients.items() if norm(g) < floor}

    def effect(name: str, move: np.ndarray) -> np.ndarray:
        # On the loss, to first order: AdamW moves an element by the rate, whatever its gradient
        # is, and where that is only rounding so is the direction. A statistic has no gradient.
        return move * gradients.get(name, 1)

    own = [("the loss", distance(serial.losses, found.losses))]
    for what, each in {
        "gradient": {n: distance(g, found.gradients[n], floor) for n, g in gradients.items()},
        "movement": {
            n: distance(effect(n, move), effect(n, found.moves[n]))
            for n, move in serial.moves.items()
            if n not in rounding
        },
    }.items():
        worst = max(each, key=lambda name: each[name])
        own.append((f"the {what} of {worst}", each[worst]))
    return {name: max(replicas.all_gather_scalar(value)) for name, value in own}


def distance(ours: np.ndarray, theirs: np.ndarray, floor: float = 0.0) -> float:
    """Returns the norm of the difference over the norm or a floor; inf if one is not finite."""
    ratio = norm(ours - theirs) / max(norm(ours), floor, 1e-30)
    return ratio if np.isfinite(ratio) else float("inf")


def norm(*arrays: np.ndarray) -> float:
    """Returns the norm of all arrays together."""
    return float(sum(np.sum(np.square(a, dtype=np.float64)) for a in arrays) ** 0.5)


def describe(layout: Layout) -> str:
    """Describes a layout, as `2 processes, 4 stages, gpipe, recompute`."""
    words = [f"{layout.processes} process{'es' * (layout.processes > 1)}"]
    words.append(f"{layout.stages} stage{'s' * (layout.stages > 1)}")
    if layout.stages > 1:
        words.append(layout.schedule + (f" x {layout.chunks} chunks" if layout.chunks > 1 else ""))
    if layout.tensor > 1:
        words.append(f"{layout.tensor} shards")
    if layout.recompute:
        words.append("recompute")
    return ", ".join(words)
