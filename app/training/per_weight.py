"""Which rule moves each weight: exceptions from weight decay, and factors of the learning rate.

Patterns are those of `fnmatch`, on whole names of weights: `*` stands for any characters, slashes
included. An experiment without patterns has one rule for all weights.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import tensorflow as tf

from app.config import Optimization
from app.errors import UsageError
from app.optimizers import Optimizer


class Rule(NamedTuple):
    """How one weight moves.

    Attributes:
        optimizer: the experiment's, or that without weight decay.
        rate_factor: of the learning rate; None where no pattern matches.
    """

    optimizer: Optimizer
    rate_factor: float | None

    def rate(self, rate: tf.Tensor) -> tf.Tensor:
        """Returns the weight's learning rate, from that of the step."""
        return rate if self.rate_factor is None else rate * self.rate_factor


def rules(optimization: Optimization, names: Iterable[str]) -> list[Rule]:
    """Returns the rule of each weight, by its whole name."""
    optimizer = without_decay = optimization.optimizer
    if optimization.no_decay:
        without_decay = dataclasses.replace(optimizer, weight_decay=0.0)  # type: ignore[call-arg]
    found = []
    for name in names:
        is_excluded = any(fnmatchcase(name, pattern) for pattern in optimization.no_decay)
        factors = (f for pattern, f in optimization.rate_factors if fnmatchcase(name, pattern))
        found.append(Rule(without_decay if is_excluded else optimizer, next(factors, None)))
    return found


def trust_ratios(
    each: Sequence[Rule], weights: Sequence[tf.Variable], gradient_norms: tf.Tensor
) -> list[tf.Tensor | None]:
    """Computes `Optimizer.trust_ratios` of all weights, those of one optimizer at once."""
    ratios: list[tf.Tensor | None] = [None] * len(weights)
    places: dict[int, list[int]] = {}  # two optimizers at most, perhaps without a hash
    for i, rule in enumerate(each):
        places.setdefault(id(rule.optimizer), []).append(i)
    for own in places.values():
        is_all = len(own) == len(weights)
        norms = gradient_norms if is_all else tf.gather(gradient_norms, own)
        found = each[own[0]].optimizer.trust_ratios([weights[i] for i in own], norms)
        for i, ratio in zip(own, found, strict=True):
            ratios[i] = ratio
    return ratios


def require_matches(optimization: Optimization, names: Sequence[str]) -> None:
    """Checks that each pattern matches a weight.

    Raises:
        UsageError: one does not; names the nearest weight.
    """
    patterns = {
        "no_decay": list(optimization.no_decay),
        "rate_factors": [pattern for pattern, _ in optimization.rate_factors],
    }
    for field, pattern in ((field, p) for field, each in patterns.items() for p in each):
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        raise UsageError(
            f"optimization.{field}: no trained weight has a name like {pattern!r} (nearest: "
            f"{nearest(pattern, names)}): give a pattern that matches one, or leave it out."
        )


def nearest(pattern: str, names: Sequence[str]) -> str:
    """Returns the name whose beginning, of as many parts, is most like a pattern."""
    fixed = pattern.rstrip("*").rstrip("/")
    parts = fixed.count("/") + 1

    def likeness(name: str) -> float:
        start = "/".join(name.split("/")[:parts])
        return difflib.SequenceMatcher(None, start, fixed).ratio()

    return max(names, key=likeness, default="none")
