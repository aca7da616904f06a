"""What is computed (Experiment) and where it is computed (Layout).

The trained weights are a function of the Experiment only. Both are plain frozen
dataclasses, checked before TensorFlow is imported: a mistyped flag is answered at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, runtime_checkable

from app.bounds import Bound, Count, Fraction, Natural, NonNegative, Positive
from app.objectives import Classification, Objective
from app.optimizers import OPTIMIZERS, SGD, Optimizer
from app.schedules import SCHEDULES, Cosine, Progress, Schedule
from input.text import VOCABULARY, Text
from models.keras_model import WEIGHT_FILES

if TYPE_CHECKING:
    from input.batches import DataSet

Share = Annotated[float, Bound("in (0, 1]", lambda x: 0 < x <= 1)]
Seed = Annotated[int, Bound("in [0, 2147483648)", lambda n: 0 <= n < 2**31)]
Staleness = Annotated[int, Bound("at least 0 (0: synchronous; none: any)", lambda n: n >= 0)]
RateFactor = Annotated[
    float,
    Bound(
        "above 0 and finite (to keep weights as they are, freeze them)", lambda x: 0 < x < math.inf
    ),
]
MEASURED_MICRO_BATCHES = 8  # of a process in a step, where stages are benchmarked


@runtime_checkable
class Model(Protocol):
    """A frozen dataclass that lists a model's blocks (`models.blocks` says what one is)."""

    def blocks(self, num_classes: int) -> Sequence[Any]:
        """Returns the Keras layers, first to last; called once a process.

        The number is that of the model's outputs, which the objective needs of the data
        (`Objective.num_outputs`): of classes, in classification.

        A model that can be split over devices (--tensor) takes `shards: int = 1` too, and
        makes what can be split of `models.shards.Sharded`.

        What a model knows of its blocks without TensorFlow is checked sooner: `len(model)` of
        them, and in `shardable`, by the name of a layer, how many parts there are to split.
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
    """How gradients become weights. Every duration is counted in examples.

    The optimizer's and the schedule's own fields are set, recorded and named in messages beside
    these: `--set optimization.optimizer=adamw --set optimization.beta2=0.99`.
    """

    optimizer: Optimizer = field(default=SGD(), metadata={"choices": OPTIMIZERS})
    schedule: Schedule = field(default=Cosine(), metadata={"choices": SCHEDULES})
    learning_rate: Positive = 0.1  # at a global batch of `reference_batch` examples
    reference_batch: Count = 256  # linear scaling: rate = learning_rate * G / reference_batch
    warmup_epochs: NonNegative = 5.0
    clip_norm: NonNegative = 0.0  # most the norm of all gradients together may be; 0: any
    ema_decay: Fraction = 0.0  # of the moving average of the weights, a step; 0: none
    # Patterns of names of weights (`fnmatch`), as "embeddings/*". Biases and normalisation do not
    # decay in any case.
    no_decay: tuple[str, ...] = field(default=(), metadata={"came_later": True})
    # Of the learning rate, by pattern; the first that matches a weight counts.
    rate_factors: tuple[tuple[str, RateFactor], ...] = field(
        default=(), metadata={"came_later": True}
    )

    def rate_at(self, step: int, global_batch: int, num_examples: int, total_steps: int) -> float:
        """Returns the learning rate of step `step`, from the examples seen before it.

        Linear scaling and gradual warm-up as in arXiv:1706.02677, 2.1 and 2.2: from nothing to
        `learning_rate * G / reference_batch`, by the same amount each step. Then the schedule.
        """
        peak = self.learning_rate * global_batch / self.reference_batch
        seen = step * global_batch
        warmup = self.warmup_epochs * num_examples
        if seen + global_batch <= warmup:
            return peak * (seen + global_batch) / warmup
        remaining = max(1.0, total_steps * global_batch - warmup)
        fraction = min(1.0, max(0.0, (seen - warmup) / remaining))
        return peak * self.schedule.factor(Progress(seen, num_examples, fraction))


@dataclass(frozen=True)
class Update:
    """How micro-batch gradients become one update: what changes numbers on purpose.

    all_reduce        every step is one sum over all processes
    parameter_server  workers compute gradients, servers hold the weights (1 process more each)
    local_sgd         each process trains by itself for `local_steps`, then all take the mean
    adasum            gradients that agree are averaged, others added (arXiv:2006.02924)
    """

    kind: Literal["all_reduce", "parameter_server", "local_sgd", "adasum"] = "all_reduce"
    staleness: Staleness | None = 0  # parameter_server: steps one may run ahead; 0: none; none: any
    local_steps: Count = 1  # local_sgd: K; 1 is the synchronous step
    outer_rate: Positive = 1.0  # local_sgd: of a round's mean move, as in DiLoCo (arXiv:2311.08105)
    outer_momentum: Fraction = 0.0  # local_sgd: Nesterov's, of that move
    compression: Literal["none", "float16", "topk"] = "none"  # all_reduce: of gradients on the wire
    topk: Share = 0.01  # compression=topk: the share of each gradient's elements that is sent
    error_feedback: bool = True  # what compression left out is added to the next step's
    on_nonfinite: Literal["abort", "skip"] = "abort"  # of a step whose sums are not finite
    skip_budget: Natural = 10  # steps of a run that may be skipped


@dataclass(frozen=True)
class Experiment:
    """Everything the trained weights depend on."""

    model: Model
    data: Data
    global_batch: Count  # G, examples a step
    micro_batch: Count  # examples normalised together; V = G / micro_batch virtual replicas
    epochs: float | None = None
    steps: int | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: Seed = 0
    objective: Objective = field(default=Classification(), metadata={"came_later": True})
    optimization: Optimization = field(default_factory=Optimization)
    update: Update = field(default_factory=Update)
    # Patterns of names of weights that are not trained: `models/freezing.py`.
    frozen: tuple[str, ...] = field(default=(), metadata={"came_later": True})

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
    """Where the experiment runs. No field of it changes the trained weights.

    Under the synchronous update rules, that is: where processes step independently, or compress
    what they send, their number is part of what is computed (`docs/update_rules.md`).
    """

    processes: int = 1
    stages: int = 1  # of a process: the model is cut in as many runs of blocks
    tensor: int = 1  # devices a stage: its blocks are split in as many shards
    schedule: Literal["1f1b", "gpipe"] = "1f1b"  # order of a stage's micro-batches
    chunks: int = 1  # runs of blocks a stage; more than 1: interleaved
    cut: tuple[int, ...] = ()  # blocks of each run; none: balanced by measured time
    recompute: bool = False  # keep only what comes into a stage, compute the rest again
    servers: tuple[str, ...] = ()  # host:port of a stage server for each stage of each process
    exact: bool = False  # bit for bit the same weights on any layout without `tensor`
    elastic: bool = False  # processes may die, leave and join while it runs
    workers: int = 0  # of a parameter-server job
    parameter_servers: int = 0  # likewise

    @property
    def devices(self) -> int:
        """The number of devices of each process."""
        return self.stages * self.tensor


def resolved(experiment: Experiment) -> Experiment:
    """Names what the data leave to the model: texts take the vocabulary of its first weights."""
    data = experiment.data
    if not isinstance(data, Text) or data.vocabulary is not None:
        return experiment
    name = getattr(experiment.model, "init_from", None) or VOCABULARY
    if name.endswith(WEIGHT_FILES):
        name = VOCABULARY
    return dataclasses.replace(experiment, data=dataclasses.replace(data, vocabulary=name))


def as_dict(config: Any) -> dict[str, Any]:
    """Returns a dataclass as nested dictionaries of plain values, each with its type's name.

    The name is part of it: a ResNet and a user's model with equal fields are two models. An object
    of a field with `choices` is recorded as it is set: its name, and its fields beside that. A
    field with `came_later` in its metadata is left out at its default, since older runs lack it;
    `recorded` in it is a function that makes plain values of what the field holds.
    """
    values: dict[str, Any] = {"type": _type_name(config)}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("came_later") and value == f.default:
            continue
        if "recorded" in f.metadata:
            values[f.name] = f.metadata["recorded"](value)
            continue
        if "choices" in f.metadata:
            values[f.name] = choice_name(value, f.metadata["choices"])
            values |= as_dict(value) | {"type": values["type"]}
            continue
        is_tuple = isinstance(value, tuple)
        values[f.name] = [_recorded(v) for v in value] if is_tuple else _recorded(value)
    return values


def _recorded(value: Any) -> Any:
    return as_dict(value) if dataclasses.is_dataclass(value) else value


def choice_name(value: Any, choices: Mapping[str, type]) -> str:
    """Returns the name that chooses an object's type, or the full name of a user's own type."""
    return next((n for n, kind in choices.items() if kind is type(value)), _type_name(value))


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def field_names(config: Any) -> list[str]:
    """Returns the names of a dataclass's fields that can be set."""
    return [f.name for f in dataclasses.fields(config) if f.init]


# Until optimizers and schedules had their own fields, runs recorded all of these.
OF_ALL_CHOICES = {
    "decay_epochs", "decay_factor", "momentum", "nesterov", "weight_decay", "trust_coefficient",
    "beta2", "epsilon",
}  # fmt: skip


def recorded(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the experiment that a run of any version recorded, as `as_dict` writes it now.

    Older runs recorded the fields of every optimizer and schedule. Those that the chosen ones do
    not have had no effect, and are left out.
    """
    values = dict(experiment)
    rule = values.get("optimization", {})
    if "label_smoothing" in rule:  # until objectives had their own fields
        rule = dict(rule)
        objective = Classification(label_smoothing=rule.pop("label_smoothing"))
        values["optimization"] = rule
        if objective != Classification():
            values["objective"] = as_dict(objective)
    if rule.keys() >= OF_ALL_CHOICES:
        chosen = [OPTIMIZERS[rule["optimizer"]], SCHEDULES[rule["schedule"]]]
        unused = OF_ALL_CHOICES.difference(*map(field_names, chosen))
        values["optimization"] = {n: v for n, v in rule.items() if n not in unused}
    return values


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values as they come back from JSON."""
    result: dict[str, Any] = json.loads(json.dumps(values))
    return result


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """Returns a line `field: ours, theirs` for every leaf in which two `as_dict` results differ."""
    lines = []
    for name in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(name), theirs.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            lines.append(f"{prefix}{name}: {a} here, {b} there")
    return lines
