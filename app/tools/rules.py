"""Defines what is compared, and under which conditions.

Update rules have short names, as in `compare --updates=sync,async,bounded:4,local:8`; all are run
with the same straggler and on the same slow link, if there is one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import UsageError
from app.launch import private_network
from app.parallel import straggler


@dataclass(frozen=True)
class Conditions:
    """The conditions under which all rules are run.

    Attributes:
        workers: processes that compute.
        slowdown: how many times slower the last of them is made; 1: none.
        mbit: Mbit/s of the link that all share; 0: unlimited.
        price: of a worker's device for an hour; 0: not reported.
        target: the accuracy whose time is reported; 0: a point below the synchronous rule's.
        evaluations: of each run, at equal distances.
    """

    workers: int
    slowdown: float = 1.0
    mbit: float = 0.0
    price: float = 0.0
    target: float = 0.0
    evaluations: int = 10

    @property
    def of_runs(self) -> dict[str, float]:
        """The conditions that change a run; price and target change only the report."""
        return {
            "NP": self.workers, "slowdown": self.slowdown, "link_mbit": self.mbit,
            "evaluations": self.evaluations,
        }  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a run under these conditions."""
        found = {"NP": str(self.workers)}
        if self.slowdown > 1:
            found[straggler.VARIABLE] = f"{self.workers - 1}:{self.slowdown}"
        if self.mbit:
            found[private_network.LINK] = str(self.mbit)
        return found


@dataclass(frozen=True)
class Rule:
    """A way in which workers update the weights.

    Attributes:
        name: as the user gave it.
        settings: for --set, beside the user's.
        about: what is done, for a reader who does not know the rule.
        risk: why its accuracy may fall behind, and what helps.
    """

    name: str
    settings: tuple[str, ...]
    about: str
    risk: str


# By name: settings, the default of the number after the colon (its type too), about, risk. {} is
# the number.
_SERVER, _LOCAL = "update.kind=parameter_server", "update.kind=local_sgd"
_STALE = (
    "gradients are computed on weights that others have changed meanwhile, the staler the more "
    "workers there are: a lower learning rate or a longer warm-up helps"
)
_APART = (
    "the replicas move apart between averagings, and an average of them is not where one of them "
    "would be: fewer local steps, or a lower learning rate"
)
_CUT = (
    "what is left out reaches the weights steps later, or in a short run never: send more of it, "
    "or train for more steps"
)
_EQUAL = "the same sums in another order: the difference is rounding, as another seed would give"
RULES: dict[str, tuple[tuple[str, ...], float | None, str, str]] = {
    "sync": ((), None, "every step, gradients are summed over all workers (all-reduce)", _EQUAL),
    "ps": (
        (_SERVER, "update.staleness=0"), None,
        "a parameter server holds the weights; all workers share each step and wait for each other",
        _EQUAL,
    ),
    "async": (
        (_SERVER, "update.staleness=none"), None,
        "a parameter server holds the weights; each worker takes steps without waiting for others",
        _STALE,
    ),
    "bounded": (
        (_SERVER, "update.staleness={}"), 4,
        "as async, but no step begins more than {} ahead of the oldest that is not applied", _STALE,
    ),
    "local": (
        (_LOCAL, "update.local_steps={}"), 8,
        "each worker trains by itself for {} steps, then all take the mean of their weights",
        _APART,
    ),
    "diloco": (
        (_LOCAL, "update.local_steps={}", "update.outer_rate=0.7", "update.outer_momentum=0.9"), 8,
        "as local with {} steps, and the mean move of a round is a gradient for an outer Nesterov "
        "momentum of 0.9 at rate 0.7 (DiLoCo)",
        "the outer momentum lengthens rounds that move the same way, up to 0.7 / (1 - 0.9) = 7 "
        "times, and needs tens of rounds to settle: a lower learning rate, more rounds, or a "
        "smaller update.outer_momentum",
    ),
    "adasum": (
        ("update.kind=adasum",), None,
        "of each pair of workers, gradients that agree are averaged and others added",
        "where gradients differ it takes longer steps than the mean: a lower learning rate",
    ),
    "float16": (
        ("update.compression=float16",), None,
        "as sync, with gradients rounded to 16 bits on the wire; what is cut off is sent later",
        _CUT,
    ),
    "topk": (
        ("update.compression=topk", "update.topk={}"), 0.01,
        "as sync, but each worker sends only {} of each gradient's elements, the largest; the "
        "others are added to its next gradient",
        _CUT,
    ),
}  # fmt: skip


def parse(names: Sequence[str]) -> list[Rule]:
    """Returns the rules of these names.

    Raises:
        UsageError: a name is unknown or given twice, or its number is not one.
    """
    if len(names) < 2:
        raise UsageError(
            f"--updates={','.join(names)} must name 2 rules or more to compare, of "
            f"{', '.join(RULES)}."
        )
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--updates names {name} twice.")
    return [_rule(name) for name in names]


def _rule(name: str) -> Rule:
    kind, separator, text = name.partition(":")
    if kind not in RULES:
        raise UsageError(f"--updates: there is no rule {name!r}; there are {', '.join(RULES)}.")
    settings, default, about, risk = RULES[kind]
    if default is None and separator:
        raise UsageError(f"--updates: {kind} takes no number, but {name!r} gives it one.")
    number = _number(name, text, default) if separator and default is not None else default
    shown = f"{number:.2%}" if kind == "topk" else str(number)
    return Rule(name, tuple(s.format(number) for s in settings), about.format(shown), risk)


def _number(name: str, text: str, default: float) -> float:
    try:
        number = type(default)(text)
    except ValueError:
        number = -1
    if number <= 0:
        raise UsageError(
            f"--updates: {name!r} must have a number above 0 after the colon, as "
            f"{name.partition(':')[0]}:{default}."
        )
    return number
