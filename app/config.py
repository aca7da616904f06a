"""What is computed (Experiment) and where it is computed (Layout).

The trained weights are a function of the Experiment alone. Both are plain frozen
dataclasses, checked before TensorFlow is imported: a mistyped flag is answered at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from app.errors import DataError, UsageError
from app.parallel import topology

if TYPE_CHECKING:
    from input.batches import DataSet

MEASURED_MICRO_BATCHES = 8  # of a process in a step, where stages are benchmarked


@runtime_checkable
class Model(Protocol):
    """A frozen dataclass that lists a model's blocks (`models.blocks` says what one is)."""

    def blocks(self, num_classes: int) -> Sequence[Any]:
        """Returns the Keras layers, first to last; called once a process.

        A model that can be split over devices (--tensor) takes `shares: int = 1` too, and
        makes what can be split of `models.shares.Shared`.

        What a model knows of its blocks without TensorFlow is checked sooner: `len(model)` of
        them, and in `shareable`, by the name of a layer, how many parts there are to share.
        """
        ...


@runtime_checkable
class Data(Protocol):
    """A frozen dataclass that opens a data set (`input.images.Images` is one).

    What fields of a model must at least be is checked sooner if `limits` says it, by their names.
    """

    def prepare(self, data_dir: str) -> str:
        """Writes the data set below `data_dir` if it is not there; returns a line on it."""
        ...

    def open(self, data_dir: str) -> DataSet:
        """Returns the prepared data set; raises `input.InputError` if it is not prepared."""
        ...


@dataclass(frozen=True)
class Optimization:
    """From gradients to weights. Everything that lasts is counted in examples."""

    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    learning_rate: float = 0.1  # at a global batch of `reference_batch` examples
    reference_batch: int = 256  # linear scaling: rate = learning_rate * G / reference_batch
    schedule: Literal["constant", "cosine", "linear", "steps"] = "cosine"
    warmup_epochs: float = 5.0
    decay_epochs: tuple[float, ...] = (30.0, 60.0, 80.0)  # schedule=steps
    decay_factor: float = 0.1
    momentum: float = 0.9  # beta1 of adamw
    nesterov: bool = False
    weight_decay: float = 1e-4  # not on biases and normalisation
    trust_coefficient: float = 0.001  # optimizer=lars
    beta2: float = 0.999  # optimizer=adamw
    epsilon: float = 1e-8  # optimizer=adamw
    clip_norm: float = 0.0  # most the norm of all gradients together may be; 0: any
    label_smoothing: float = 0.0
    ema_decay: float = 0.0  # of the moving average of the weights, a step; 0: none


@dataclass(frozen=True)
class Update:
    """How micro-batch gradients become one update: what changes numbers on purpose."""

    compression: Literal["none", "float16"] = "none"  # of gradients on the wire
    on_nonfinite: Literal["abort", "skip"] = "abort"  # of a step whose sums are not finite
    skip_budget: int = 10  # steps of a run that may be skipped


@dataclass(frozen=True)
class Experiment:
    """Everything the trained weights depend on."""

    model: Model
    data: Data
    global_batch: int  # G, examples a step
    micro_batch: int  # examples normalised together; V = G / micro_batch virtual replicas
    epochs: float | None = None
    steps: int | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0
    optimization: Optimization = field(default_factory=Optimization)
    update: Update = field(default_factory=Update)

    @property
    def num_micro_batches(self) -> int:
        """V: micro-batches in a step, over all processes."""
        return self.global_batch // self.micro_batch

    def total_steps(self, num_examples: int) -> int:
        """Steps of the whole run: `steps`, or `epochs` rounded up to whole steps."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return math.ceil(self.epochs * num_examples / self.global_batch)


@dataclass(frozen=True)
class Layout:
    """Where the experiment runs. No field of it changes the trained weights."""

    processes: int = 1
    stages: int = 1  # of a process: the model is cut in as many runs of blocks
    tensor: int = 1  # devices a stage: its blocks are split in as many shares
    schedule: Literal["1f1b", "gpipe"] = "1f1b"  # order of a stage's micro-batches
    chunks: int = 1  # runs of blocks a stage; more than 1: interleaved
    cut: tuple[int, ...] = ()  # blocks of each run; none: balanced by measured time
    recompute: bool = False  # keep only what comes into a stage, compute the rest again
    servers: tuple[str, ...] = ()  # host:port of a stage server for each stage of each process
    exact: bool = False  # bit for bit the same weights on any layout without `tensor`
    elastic: bool = False  # processes may die, leave and join while it runs

    @property
    def devices(self) -> int:
        """Of each process."""
        return self.stages * self.tensor


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
    if e.update.skip_budget < 0:
        raise UsageError(f"update.skip_budget must be at least 0, not {e.update.skip_budget}.")
    if layout.exact and e.update.compression != "none":
        raise UsageError(
            f"--exact cannot keep update.compression={e.update.compression}: what is rounded on "
            "the wire depends on the layout; drop one of the two."
        )
    validate_limits(e, getattr(e.data, "limits", {}))


def validate_types(owner: Any, prefix: str) -> None:
    """Checks what a person's own file gives, as Python does not.

    Raises:
        UsageError: a field that holds something else than it says.
    """
    for name, wanted in typing.get_type_hints(type(owner)).items():
        value = getattr(owner, name)
        if not is_of(value, wanted):
            raise UsageError(f"{prefix}{name} {_must(wanted)}, not {value!r}.")


def validate_stages(experiment: Experiment, layout: Layout) -> None:
    """Checks the pipeline's shape.

    Raises:
        UsageError: what cannot be scheduled.
    """
    p, c, t = layout.stages, layout.chunks, layout.tensor
    if min(p, c, t) < 1:
        raise UsageError(f"--stages ({p}), --chunks ({c}) and --tensor ({t}) must be at least 1.")
    if t > 1 and "shares" not in inspect.signature(experiment.model.blocks).parameters:
        raise UsageError(
            f"--tensor={t} splits layers, but {type(experiment.model).__name__} cannot be split: "
            "its blocks() takes no `shares`; cut it with --stages instead."
        )
    for layer, items in getattr(experiment.model, "shareable", {}).items():
        if t > items:
            raise UsageError(
                f"{layer} has {items} parts to share, fewer than --tensor={t}: set at most "
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


def override(experiment: Experiment, settings: Sequence[str]) -> Experiment:
    """Applies `field=value` settings, all at once, each value read as its field's type.

    Raises:
        UsageError: an unknown field (names the nearest and lists the valid ones) or a
            value that is not of the field's type.
    """
    tree: dict[str, Any] = {}
    for setting in settings:
        path, separator, text = (part.strip() for part in setting.partition("="))
        if not separator:
            raise UsageError(f"--set needs field=value, not {setting!r}.")
        *groups, name = path.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
            if not isinstance(branch, dict):
                raise UsageError(f"--set: {group} is given a value and fields: drop one of them.")
        if isinstance(branch.pop(name, None), dict):
            raise UsageError(f"--set: {name} is given a value and fields: drop one of them.")
        branch[name] = text
    # The length of the run has two spellings: the one given last wins.
    lengths = [name for name in tree if name in ("steps", "epochs")]
    if lengths:
        *_, last = lengths
        other = {"steps": "epochs", "epochs": "steps"}[last]
        tree[other] = "none"
    return _replaced(experiment, tree, "")


def _replaced(owner: Any, tree: dict[str, Any], prefix: str) -> Any:
    fields = [f.name for f in dataclasses.fields(owner) if f.init]
    values: dict[str, Any] = {}
    for name, given in tree.items():
        value = getattr(owner, name) if name in fields else None
        is_group = isinstance(given, dict)
        if name not in fields or is_group != dataclasses.is_dataclass(value):
            near = [f"{prefix}{f}" for f in difflib.get_close_matches(name, fields, n=1)]
            if name in fields:  # a group without a field, or a field taken for a group
                near = [f"{prefix}{name}"] if is_group else [f"{prefix}{name}.*"]
            hint = f" (nearest: {near[0]})" if near else ""
            path = prefix + name + (f".{next(iter(given))}" if is_group else "")
            raise UsageError(
                f"no field {path!r}{hint}; valid: {', '.join(prefix + f for f in fields)}."
            )
        if is_group:
            values[name] = _replaced(value, given, f"{prefix}{name}.")
            continue
        try:
            values[name] = parse(given, typing.get_type_hints(type(owner))[name])
        except ValueError as error:
            raise UsageError(f"{prefix}{name}={given}: {error}.") from None
    try:
        return dataclasses.replace(owner, **values)
    except Exception as error:  # of whatever kind: its own __post_init__ checks it
        given = ", ".join(f"{prefix}{n}={t}" for n, t in tree.items() if not isinstance(t, dict))
        raise UsageError(f"{given}: {str(error) or type(error).__name__}.") from None


def parse(text: str, wanted: Any) -> Any:
    """Reads `text` as a value of type `wanted`.

    Raises:
        ValueError: says what was wanted.
    """
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        if text not in arguments:
            raise ValueError(_must(wanted))
        return text
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in arguments:
            return None
        return parse(text, next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        items = [item.strip() for item in text.strip("()[]").split(",") if item.strip()]
        return tuple(parse(item, arguments[0]) for item in items)
    if wanted is str:
        return text
    if wanted is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError("must be true or false")
        return text.lower() in ("true", "1")
    with contextlib.suppress(ValueError):
        if wanted is int:
            return int(text, 0)
        if wanted is float and math.isfinite(float(text)):
            return float(text)
    raise ValueError(_must(wanted))


def is_of(value: Any, wanted: Any) -> bool:
    """Whether `value` is what a field of type `wanted` may hold."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(is_of(value, a) for a in arguments)
    if origin is tuple:
        return isinstance(value, (tuple, list)) and all(is_of(v, arguments[0]) for v in value)
    if wanted in (int, float):
        kinds = int if wanted is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    if wanted in (Model, Data) and (isinstance(value, type) or not dataclasses.is_dataclass(value)):
        return False
    return isinstance(value, wanted)


def _must(wanted: Any) -> str:
    if typing.get_origin(wanted) is Literal:
        return f"must be one of {', '.join(map(str, typing.get_args(wanted)))}"
    if wanted in (Model, Data):
        return f"must be a dataclass as app.config.{wanted.__name__} says"
    if wanted is float:
        return "must be a finite number"
    return f"must be of type {wanted.__name__ if isinstance(wanted, type) else wanted}"


def as_dict(config: Any) -> dict[str, Any]:
    """Nested dictionary of plain values, each dataclass with its type's name.

    The name is part of it: a ResNet and a user's model with equal fields are two models.
    """
    values: dict[str, Any] = {"type": f"{type(config).__module__}.{type(config).__qualname__}"}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            value = as_dict(value)
        values[f.name] = list(value) if isinstance(value, tuple) else value
    return values


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON."""
    result: dict[str, Any] = json.loads(json.dumps(values))
    return result


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines `field: ours, theirs` for every leaf in which two `as_dict` results differ."""
    lines = []
    for name in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(name), theirs.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            lines.append(f"{prefix}{name}: {a} here, {b} there")
    return lines
