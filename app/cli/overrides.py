"""`--set field=value`: from text to the fields of an experiment, by their types."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from app.config import Data, Experiment, Model
from app.errors import UsageError


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
            raise ValueError(must(wanted))
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
    raise ValueError(must(wanted))


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


def must(wanted: Any) -> str:
    """What a field of type `wanted` must be, for a person."""
    if typing.get_origin(wanted) is Literal:
        return f"must be one of {', '.join(map(str, typing.get_args(wanted)))}"
    if wanted in (Model, Data):
        return f"must be a dataclass as app.config.{wanted.__name__} says"
    if wanted is float:
        return "must be a finite number"
    return f"must be of type {wanted.__name__ if isinstance(wanted, type) else wanted}"
