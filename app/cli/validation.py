"""What cannot be, told before TensorFlow is imported."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Mapping, Sized
from typing import Any

from app.cli.overrides import is_of, must
from app.config import Experiment, Layout, Update
from app.errors import DataError, UsageError
from app.parallel import topology

# Fields that one update rule alone reads.
FIELDS = {
    "all_reduce": ("compression",),
    "parameter_server": ("staleness",),
    "local_sgd": ("local_steps", "outer_rate", "outer_momentum"),
}


def validate(experiment: Experiment, layout: Layout) -> None:
    """Checks what can be checked without the data.

    Raises:
        UsageError: the rule, the values that break it, and the way out.
    """
    e, o = experiment, experiment.optimization
    for owner, prefix in ((e, ""), (o, "optimization."), (e.update, "update.")):
        validate_types(owner, prefix)
    positive = {"global_batch": e.global_batch, "micro_batch": e.micro_batch}
    positive |= {"optimization.reference_batch": o.reference_batch}
    for name, value in positive.items():
        if value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}.")
    if e.global_batch % e.micro_batch:
        below = e.global_batch // e.micro_batch * e.micro_batch
        near = [g for g in (below, below + e.micro_batch) if g]
        raise UsageError(
            f"global_batch ({e.global_batch}) must be a multiple of micro_batch "
            f"({e.micro_batch}): set global_batch={' or '.join(map(str, near))}."
        )
    if layout.processes > e.num_micro_batches:
        raise UsageError(
            f"{layout.processes} processes need at least as many micro-batches, but global_batch "
            f"{e.global_batch} / micro_batch {e.micro_batch} gives {e.num_micro_batches}: start at "
            f"most {e.num_micro_batches} processes, or set a smaller micro_batch."
        )
    validate_stages(e, layout)
    if (e.steps is None) == (e.epochs is None):
        raise UsageError(f"give either steps or epochs, not steps={e.steps} and epochs={e.epochs}.")
    for name, amount in (("steps", e.steps), ("epochs", e.epochs)):
        if amount is not None and not 0 < amount < math.inf:
            raise UsageError(f"{name} must be more than 0 and finite, not {amount}.")
    if not 0 <= e.seed < 2**31:
        raise UsageError(f"seed must be in [0, 2147483648), not {e.seed}.")
    for name in ("learning_rate", "decay_factor", "trust_coefficient", "epsilon"):
        if not 0 < getattr(o, name) < math.inf:
            raise UsageError(
                f"optimization.{name} must be above 0 and finite, not {getattr(o, name)}."
            )
    at_least_0 = {n: (getattr(o, n),) for n in ("warmup_epochs", "weight_decay", "clip_norm")}
    for name, numbers in {**at_least_0, "decay_epochs": o.decay_epochs}.items():
        for value in numbers:
            if not 0 <= value < math.inf:
                raise UsageError(f"optimization.{name} must be at least 0 and finite, not {value}.")
    fractions = {n: getattr(o, n) for n in ("momentum", "beta2", "label_smoothing", "ema_decay")}
    for name, value in fractions.items():
        if not 0 <= value < 1:
            raise UsageError(f"optimization.{name} must be in [0, 1), not {value}.")
    validate_update(e, layout)
    validate_limits(e, getattr(e.data, "limits", {}))


def validate_types(owner: Any, prefix: str) -> None:
    """Checks what a person's own file gives, as Python does not.

    Raises:
        UsageError: a field that holds something else than it says.
    """
    for name, wanted in typing.get_type_hints(type(owner)).items():
        value = getattr(owner, name)
        if not is_of(value, wanted):
            raise UsageError(f"{prefix}{name} {must(wanted)}, not {value!r}.")


def validate_stages(experiment: Experiment, layout: Layout) -> None:
    """Checks the pipeline's shape.

    Raises:
        UsageError: what cannot be scheduled.
    """
    p, c, t = layout.stages, layout.chunks, layout.tensor
    if min(p, c, t) < 1:
        raise UsageError(f"--stages ({p}), --chunks ({c}) and --tensor ({t}) must be at least 1.")
    if t > 1 and "shards" not in inspect.signature(experiment.model.blocks).parameters:
        raise UsageError(
            f"--tensor={t} splits layers, but {type(experiment.model).__name__} cannot be split: "
            "its blocks() takes no `shards`; cut it with --stages instead."
        )
    for layer, items in getattr(experiment.model, "shardable", {}).items():
        if t > items:
            raise UsageError(
                f"{layer} has {items} parts to split, fewer than --tensor={t}: set at most "
                f"--tensor={items}."
            )
    if t > 1 and layout.exact:
        raise UsageError(f"--tensor={t} adds up in another order than --exact: drop one of them.")
    if t > 1 and experiment.optimization.optimizer == "lars":
        raise UsageError(
            f"optimization.optimizer=lars needs the norms of whole weights, which --tensor={t} "
            "splits: use adamw or sgd, or --stages instead."
        )
    if layout.cut and (len(layout.cut) != p * c or min(layout.cut) < 1):
        raise UsageError(
            f"--cut={','.join(map(str, layout.cut))} must name the blocks of {p} stages x {c} "
            f"chunks: {p * c} numbers above 0."
        )
    blocks = len(experiment.model) if isinstance(experiment.model, Sized) else None
    if blocks is not None and p * c > blocks:
        raise UsageError(
            f"{p} stages x {c} chunks need at least {p * c} blocks, but the model has {blocks}: "
            f"set at most --stages={blocks // c or 1}."
        )
    if blocks is not None and layout.cut and sum(layout.cut) != blocks:
        raise UsageError(
            f"--cut={','.join(map(str, layout.cut))} must add up to the model's {blocks} blocks, "
            f"not to {sum(layout.cut)}."
        )
    if layout.elastic and layout.devices > 1:
        raise UsageError(
            f"--elastic cannot keep {p} stages of {t} devices: when a process is lost, its devices "
            "are too, and Horovod aborts the others in the midst of a pipeline's messages. Without "
            "--elastic the job is started again from its newest checkpoint."
        )
    if layout.servers and layout.devices == 1:
        raise UsageError(
            f"--servers={','.join(layout.servers)} lends devices to stages: give --stages or "
            "--tensor above 1, or leave it out."
        )
    if layout.servers and len(layout.servers) != p * layout.processes:
        raise UsageError(
            f"--servers names {len(layout.servers)} stage servers, but {layout.processes} "
            f"processes x {p} stages need {p * layout.processes}: one a stage, rank 0's first."
        )
    for server in layout.servers:
        host, _, port = server.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UsageError(
                f"--servers must be host:port each, with a port from 1 to 65535, not {server!r}."
            )
        if layout.servers.count(server) > 1:
            raise UsageError(f"--servers names {server} twice, but a server is one stage's.")
    if c > 1:
        shares = {
            len(topology.share(experiment.num_micro_batches, layout.processes, rank))
            for rank in range(layout.processes)
        }
        if p == 1 or layout.schedule != "1f1b" or any(m % p for m in shares):
            raise UsageError(
                f"--chunks={c} interleaves 1f1b over stages: it needs --schedule=1f1b, 2 stages or "
                f"more (not {p}), and a multiple of {p} micro-batches a process (not "
                f"{' and '.join(map(str, sorted(shares)))})."
            )


def validate_update(experiment: Experiment, layout: Layout) -> None:
    """Checks the update rule.

    Raises:
        UsageError: a number out of its range, a field of another rule, or what a rule cannot do.
    """
    u, default = experiment.update, Update()
    if u.skip_budget < 0:
        raise UsageError(f"update.skip_budget must be at least 0, not {u.skip_budget}.")
    if u.staleness is not None and u.staleness < 0:
        raise UsageError(
            f"update.staleness must be at least 0 (or none: any), not {u.staleness}: 0 is "
            "synchronous."
        )
    if u.local_steps < 1:
        raise UsageError(f"update.local_steps must be at least 1, not {u.local_steps}.")
    if not 0 < u.outer_rate < math.inf:
        raise UsageError(f"update.outer_rate must be above 0 and finite, not {u.outer_rate}.")
    if not 0 <= u.outer_momentum < 1:
        raise UsageError(f"update.outer_momentum must be in [0, 1), not {u.outer_momentum}.")
    if not 0 < u.topk <= 1:
        raise UsageError(f"update.topk must be in (0, 1], not {u.topk}.")
    for kind, fields in FIELDS.items():
        for name in fields:
            if getattr(u, name) != getattr(default, name) and u.kind != kind:
                raise UsageError(
                    f"update.{name}={getattr(u, name)} is of update.kind={kind}, but the kind is "
                    f"{u.kind}: set update.kind={kind}, or leave update.{name} out."
                )
    if u.compression != "topk" and u.topk != default.topk:
        raise UsageError(
            f"update.topk={u.topk} is of update.compression=topk, but it is {u.compression}: set "
            "that, or leave update.topk out."
        )
    if u.compression == "none" and not u.error_feedback:
        raise UsageError(
            "update.error_feedback is of update.compression, which is none: set float16 or topk, "
            "or leave it out."
        )
    if u.compression != "none" and u.error_feedback and experiment.precision == "float16":
        raise UsageError(
            f"precision=float16 changes the loss scale, which what update.compression="
            f"{u.compression} left out for later would not follow: set precision=bfloat16, or "
            "update.error_feedback=false."
        )
    if u.kind == "adasum" and layout.elastic:
        raise UsageError(
            "--elastic changes the number of processes, which update.kind=adasum needs to be a "
            "power of two: drop one of the two."
        )
    if layout.exact and (u.kind, u.compression) != ("all_reduce", "none"):
        rule = f"kind={u.kind}" if u.kind != "all_reduce" else f"compression={u.compression}"
        raise UsageError(
            f"--exact cannot keep update.{rule}: what it computes depends on the layout; drop one "
            "of the two."
        )
    if u.kind == "adasum" and layout.processes & (layout.processes - 1):
        below = 2 ** (layout.processes.bit_length() - 1)
        raise UsageError(
            f"update.kind=adasum combines processes in pairs: their number must be a power of two, "
            f"not {layout.processes}; start {below} or {2 * below}."
        )
    if u.kind == "local_sgd" and u.on_nonfinite == "skip":
        raise UsageError(
            "update.on_nonfinite=skip needs processes that skip the same step, but those of "
            "update.kind=local_sgd step alone: set update.on_nonfinite=abort."
        )
    if u.kind in ("local_sgd", "parameter_server") and experiment.precision == "float16":
        raise UsageError(
            f"precision=float16 scales the loss for all processes alike, step by step, but those "
            f"of update.kind={u.kind} do not keep step: set precision=bfloat16."
        )
    if u.kind == "parameter_server":
        validate_served(experiment, layout)


def validate_served(experiment: Experiment, layout: Layout) -> None:
    """Checks a layout against the parameter server.

    Raises:
        UsageError: what it cannot do.
    """
    names = {"elastic": layout.elastic, "stages": layout.stages > 1, "tensor": layout.tensor > 1}
    why = {
        "elastic": "its workers may die and come back as it is",
        "stages": "a worker computes the whole model",
        "tensor": "a worker computes the whole model",
    }
    for name, is_given in names.items():
        if is_given:
            raise UsageError(
                f"--{name} is of Horovod's jobs, not of update.kind=parameter_server, where "
                f"{why[name]}: drop one of the two."
            )
    if experiment.update.staleness == 0 and layout.workers > experiment.num_micro_batches:
        raise UsageError(
            f"{layout.workers} workers that share each step (update.staleness=0) need as many "
            f"micro-batches, but there are {experiment.num_micro_batches}: start fewer, set a "
            "smaller micro_batch, or give update.staleness."
        )


def validate_limits(experiment: Experiment, limits: Mapping[str, int]) -> None:
    """What the data need of the model, by the names of the model's fields.

    Raises:
        UsageError: a field is smaller than the data need it.
    """
    for name, least in limits.items():
        value = getattr(experiment.model, name, None)
        if value is not None and value < least:
            raise UsageError(
                f"model.{name} is {value}, but the data need at least {least}: set "
                f"model.{name}={least}, or other data."
            )


def validate_size(experiment: Experiment, num_examples: int) -> None:
    """A step's examples come from one epoch, or from the end of one and the start of the next.

    Raises:
        DataError: fewer training examples than a global batch.
    """
    if num_examples < experiment.global_batch:
        raise DataError(
            f"the training split has {num_examples} examples, fewer than one global batch "
            f"({experiment.global_batch}): set a smaller global_batch."
        )
