"""Checks an experiment and its layout, as far as that needs neither data nor TensorFlow."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

from app.bounds import violation
from app.cli import layouts
from app.cli.overrides import is_of, must
from app.config import Experiment, Layout, Optimization, Update, field_names
from app.errors import DataError, UsageError

# What checkpoints call other variables beside a weight (`Part.named`).
RESERVED_SLOTS = {"weights", "average", "outer_momentum"}

# Fields of an update rule that are read only where another field has one value.
FIELDS = {
    ("kind", "all_reduce"): ("compression",),
    ("kind", "parameter_server"): ("staleness",),
    ("kind", "local_sgd"): ("local_steps", "outer_rate", "outer_momentum"),
    ("compression", "topk"): ("topk",),
}


def validate(experiment: Experiment, layout: Layout) -> None:
    """Checks what can be checked without the data.

    Raises:
        UsageError: the rule, the values that break it, and the way out.
    """
    e = experiment
    validate_fields(e, "")
    validate_optimization(e.optimization)
    validate_fields(e.update, "update.")
    validate_fields(e.objective, "objective.")
    if e.global_batch % e.micro_batch:
        below = e.global_batch // e.micro_batch * e.micro_batch
        near = [g for g in (below, below + e.micro_batch) if g]
        raise UsageError(
            f"global_batch ({e.global_batch}) must be a multiple of micro_batch "
            f"({e.micro_batch}): set global_batch={' or '.join(map(str, near))}."
        )
    layouts.validate(e, layout)
    if (e.steps is None) == (e.epochs is None):
        raise UsageError(f"give either steps or epochs, not steps={e.steps} and epochs={e.epochs}.")
    for name, amount in (("steps", e.steps), ("epochs", e.epochs)):
        if amount is not None and not 0 < amount < math.inf:
            raise UsageError(f"{name} must be more than 0 and finite, not {amount}.")
    validate_update(e, layout)
    validate_limits(e, getattr(e.data, "limits", {}))


def validate_fields(owner: Any, prefix: str) -> None:
    """Checks a dataclass's values against the types and bounds that its fields declare.

    Python does not, and a person's own file may give anything.

    Raises:
        UsageError: a field that holds something else than it says.
    """
    types = typing.get_type_hints(type(owner))
    bounds = typing.get_type_hints(type(owner), include_extras=True)
    for f in dataclasses.fields(owner):
        value, path = getattr(owner, f.name), f"{prefix}{f.name}"
        if not is_of(value, types[f.name]):
            raise UsageError(f"{path} {_rule(f, types[f.name])}, not {value!r}.")
        if broken := violation(value, bounds[f.name]):
            number, rule = broken
            raise UsageError(f"{path} must be {rule}, not {number}.")


def _rule(of: dataclasses.Field[Any], wanted: type) -> str:
    if "choices" not in of.metadata:
        return must(wanted)
    examples = ", ".join(f"{kind.__name__}()" for kind in of.metadata["choices"].values())
    return f"must be an object such as {examples}, or of your own subclass of {wanted.__name__}"


def validate_optimization(optimization: Optimization) -> None:
    """Checks the optimization's own numbers, and those of its optimizer and schedule.

    Raises:
        UsageError: a wrong value, or a name that has two meanings.
    """
    validate_fields(optimization, "optimization.")
    taken = {name: "Optimization" for name in field_names(optimization)}
    for part in (optimization.optimizer, optimization.schedule):
        validate_fields(part, "optimization.")
        for name in field_names(part):
            kind = type(part).__name__
            if name in taken:
                raise UsageError(
                    f"{kind}.{name} and {taken[name]}.{name} would both be set by optimization."
                    f"{name}: give the field of {kind} another name."
                )
            taken[name] = kind
    if optimization.no_decay and "weight_decay" not in taken:
        raise UsageError(
            "optimization.no_decay names weights that do not decay, but "
            f"{type(optimization.optimizer).__name__} has no weight_decay: leave no_decay out."
        )
    slots = optimization.optimizer.slots
    for slot in slots:
        if slots.count(slot) > 1 or slot in RESERVED_SLOTS:
            raise UsageError(
                f"{type(optimization.optimizer).__name__}.slots names {slot!r}, under which "
                "checkpoints hold other variables: give each slot a name of its own."
            )


def validate_update(experiment: Experiment, layout: Layout) -> None:
    """Checks the update rule.

    Raises:
        UsageError: a field of another rule, or what a rule cannot do.
    """
    u, default = experiment.update, Update()
    for (choice, wanted), fields in FIELDS.items():
        chosen = getattr(u, choice)
        for name in fields:
            if getattr(u, name) != getattr(default, name) and chosen != wanted:
                raise UsageError(
                    f"update.{name}={getattr(u, name)} is of update.{choice}={wanted}, but the "
                    f"{choice} is {chosen}: set update.{choice}={wanted}, or leave update.{name} "
                    "out."
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
            "update.kind=local_sgd step independently: set update.on_nonfinite=abort."
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
    whole = "a worker computes the whole model"
    for name, is_given, why in (
        ("elastic", layout.elastic, "its workers may die and come back as it is"),
        ("stages", layout.stages > 1, whole),
        ("tensor", layout.tensor > 1, whole),
    ):
        if is_given:
            raise UsageError(
                f"--{name} is of Horovod's jobs, not of update.kind=parameter_server, where "
                f"{why}: drop one of the two."
            )
    if experiment.update.staleness == 0 and layout.workers > experiment.num_micro_batches:
        raise UsageError(
            f"{layout.workers} workers that share each step (update.staleness=0) need as many "
            f"micro-batches, but there are {experiment.num_micro_batches}: start fewer, set a "
            "smaller micro_batch, or give update.staleness."
        )


def validate_limits(experiment: Experiment, limits: Mapping[str, int]) -> None:
    """Checks that the model's fields are as large as the data need them.

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
    """Checks that a global batch is at most an epoch: a step spans two epochs, never three.

    Raises:
        DataError: fewer training examples than a global batch.
    """
    if num_examples < experiment.global_batch:
        raise DataError(
            f"the training split has {num_examples} examples, fewer than one global batch "
            f"({experiment.global_batch}): set a smaller global_batch."
        )
