"""Checks the shape of a layout: what cannot be cut, split, interleaved or lent."""

import inspect
from collections.abc import Sized

from app.config import Experiment, Layout, choice_name
from app.errors import UsageError
from app.optimizers import OPTIMIZERS
from app.parallel.cluster import check_addresses
from app.parallel.topology import slice_of


def validate(experiment: Experiment, layout: Layout) -> None:
    """Checks a layout against its experiment, as far as it can be without building the model.

    Raises:
        UsageError: the rule, the values that break it, and the way out.
    """
    p, c, t = layout.stages, layout.chunks, layout.tensor
    if min(p, c, t) < 1:
        raise UsageError(f"--stages ({p}), --chunks ({c}) and --tensor ({t}) must be at least 1.")
    _validate_processes(experiment, layout)
    _validate_tensor(experiment, layout)
    parts = p * c
    if layout.cut and (len(layout.cut) != parts or min(layout.cut) < 1):
        raise UsageError(
            f"--cut={_text(layout.cut)} must name the blocks of {p} stages x {c} chunks: {parts} "
            "numbers above 0."
        )
    if isinstance(experiment.model, Sized):
        validate_cut(layout, len(experiment.model))
    if layout.elastic and layout.devices > 1:
        raise UsageError(
            f"--elastic cannot keep {p} stages of {t} devices: when a process is lost, its devices "
            "are too, and Horovod aborts the others in the midst of a pipeline's messages. Without "
            "--elastic the job is started again from its newest checkpoint."
        )
    _validate_servers(layout)
    if c > 1:
        _validate_interleaving(experiment, layout)


def validate_cut(layout: Layout, blocks: int) -> None:
    """Checks that a model of so many blocks can be cut as the layout says.

    Raises:
        UsageError: more parts than blocks, or a cut that does not add up to them.
    """
    p, c = layout.stages, layout.chunks
    if p * c > blocks:
        raise UsageError(
            f"{p} stages x {c} chunks need at least {p * c} blocks, but the model has {blocks}: "
            f"set at most --stages={blocks // c or 1}."
        )
    if layout.cut and sum(layout.cut) != blocks:
        raise UsageError(
            f"--cut={_text(layout.cut)} must add up to the model's {blocks} blocks, not to "
            f"{sum(layout.cut)}."
        )


def _validate_processes(experiment: Experiment, layout: Layout) -> None:
    e = experiment
    if layout.processes > e.num_micro_batches:
        raise UsageError(
            f"{layout.processes} processes need at least as many micro-batches, but global_batch "
            f"{e.global_batch} / micro_batch {e.micro_batch} gives {e.num_micro_batches}: start at "
            f"most {e.num_micro_batches} processes, or set a smaller micro_batch."
        )


def _validate_tensor(experiment: Experiment, layout: Layout) -> None:
    t, model = layout.tensor, experiment.model
    if t == 1:
        return
    if "shards" not in inspect.signature(model.blocks).parameters:
        raise UsageError(
            f"--tensor={t} splits layers, but {type(model).__name__} cannot be split: its blocks() "
            "takes no `shards`; cut it with --stages instead."
        )
    for layer, parts in getattr(model, "shardable", {}).items():
        if t > parts:
            raise UsageError(
                f"{layer} has {parts} parts to split, fewer than --tensor={t}: set at most "
                f"--tensor={parts}."
            )
    if layout.exact:
        raise UsageError(f"--tensor={t} adds up in another order than --exact: drop one of them.")
    optimizer = experiment.optimization.optimizer
    if optimizer.is_layerwise:
        raise UsageError(
            f"optimization.optimizer={choice_name(optimizer, OPTIMIZERS)} needs the norms of whole "
            f"weights, which --tensor={t} splits: use adamw or sgd, or --stages instead."
        )


def _validate_servers(layout: Layout) -> None:
    servers, needed = layout.servers, layout.stages * layout.processes
    if servers and layout.devices == 1:
        raise UsageError(
            f"--servers={_text(servers)} lends devices to stages: give --stages or --tensor above "
            "1, or leave it out."
        )
    if servers and len(servers) != needed:
        raise UsageError(
            f"--servers names {len(servers)} stage servers, but {layout.processes} processes x "
            f"{layout.stages} stages need {needed}: one a stage, rank 0's first."
        )
    check_addresses(servers, "--servers")


def _validate_interleaving(experiment: Experiment, layout: Layout) -> None:
    p, c, total = layout.stages, layout.chunks, experiment.num_micro_batches
    sizes = {len(slice_of(total, layout.processes, r)) for r in range(layout.processes)}
    if p == 1 or layout.schedule != "1f1b" or any(size % p for size in sizes):
        raise UsageError(
            f"--chunks={c} interleaves 1f1b over stages: it needs --schedule=1f1b, 2 stages or "
            f"more (not {p}), and a multiple of {p} micro-batches a process (not "
            f"{' and '.join(map(str, sorted(sizes)))})."
        )


def _text(items: tuple[object, ...]) -> str:
    return ",".join(map(str, items))
