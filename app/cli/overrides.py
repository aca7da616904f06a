"""Applies `--set field=value` to an experiment: each text is read as its field's type."""

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from app.config import Data, Experiment, Model, choice_name, field_names
from app.errors import UsageError

LENGTHS = {"steps": "epochs", "epochs": "steps"}
MOVED = {"optimization.label_smoothing": "objective.label_smoothing"}  # older names


def override(experiment: Experiment, settings: Sequence[str]) -> Experiment:
    """Applies `field=value` settings, all at once, each value read as its field's type.

    Raises:
        UsageError: an unknown field (names the nearest and lists the valid ones), a field of an
            optimizer or schedule that is not chosen, or a value not of the field's type.
    """
    tree: dict[str, Any] = {}
    for setting in settings:
        path, separator, text = (part.strip() for part in setting.partition("="))
        if not separator:
            raise UsageError(f"--set needs field=value, not {setting!r}.")
        path = MOVED.get(path, path)
        *groups, name = path.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
            if not isinstance(branch, dict):
                raise UsageError(f"--set: {group} is given a value and fields: drop one of them.")
        if isinstance(branch.pop(name, None), dict):
            raise UsageError(f"--set: {name} is given a value and fields: drop one of them.")
        branch[name] = text
        if path in LENGTHS:  # two spellings of one length: the one given last wins
            tree[LENGTHS[path]] = "none"
    return _replaced(experiment, tree, "")


def _replaced(owner: Any, tree: dict[str, Any], prefix: str) -> Any:
    """Returns a dataclass with the values of a tree of texts in its fields.

    The fields of an object that is chosen by name stand in the tree beside its owner's own.
    """
    chosen = _chosen(owner, tree, prefix)
    values = dict(chosen)
    trees: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    for name, given in tree.items():
        holder = next((n for n, part in chosen.items() if name in field_names(part)), None)
        if name in chosen and isinstance(given, str):
            continue
        if holder and name not in field_names(owner):
            trees[holder][name] = given
        else:
            values[name] = _value(owner, chosen, name, given, prefix)
    values |= {name: _replaced(part, trees[name], prefix) for name, part in chosen.items()}
    try:
        return dataclasses.replace(owner, **values)
    except Exception as error:  # of whatever kind: its own __post_init__ checks it
        given = ", ".join(f"{prefix}{n}={t}" for n, t in tree.items() if not isinstance(t, dict))
        raise UsageError(f"{given}: {str(error) or type(error).__name__}.") from None


def _chosen(owner: Any, tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the objects that the tree chooses by name, or that are there, by field.

    What replaces another takes over the values of the fields that both have.
    """
    found = {}
    for f in dataclasses.fields(owner):
        choices = f.metadata.get("choices")
        if not choices:
            continue
        found[f.name], name = getattr(owner, f.name), tree.get(f.name)
        if not isinstance(name, str) or name == choice_name(found[f.name], choices):
            continue
        if name not in choices:
            raise UsageError(f"{prefix}{f.name}={name}: must be one of {', '.join(choices)}.")
        kept = set(field_names(found[f.name])) & set(field_names(choices[name]))
        values = {field: getattr(found[f.name], field) for field in kept}
        found[f.name] = choices[name](**{n: v for n, v in values.items() if v is not None})
    return found


def _value(owner: Any, chosen: Mapping[str, Any], name: str, given: Any, prefix: str) -> Any:
    """Reads the value of a field from its text, or that of a group from its tree."""
    is_group, is_known = isinstance(given, dict), name in field_names(owner)
    takes_group = is_known and dataclasses.is_dataclass(getattr(owner, name))
    if not is_known or name in chosen or is_group != takes_group:
        raise _unknown(owner, chosen, name, given, prefix)
    if is_group:
        return _replaced(getattr(owner, name), given, f"{prefix}{name}.")
    try:
        return parse(given, typing.get_type_hints(type(owner))[name])
    except ValueError as error:
        raise UsageError(f"{prefix}{name}={given}: {error}.") from None


def _unknown(
    owner: Any, chosen: Mapping[str, Any], name: str, given: Any, prefix: str
) -> UsageError:
    """Explains a setting of no field: what would have to be chosen, or which name is nearest."""
    for f in dataclasses.fields(owner):
        choices = f.metadata.get("choices", {})
        having = " or ".join(n for n, kind in choices.items() if name in field_names(kind))
        if having:
            return UsageError(
                f"{prefix}{name} is a field of {f.name}={having}, but the {f.name} is "
                f"{choice_name(chosen[f.name], choices)}: set {prefix}{f.name}={having}, or leave "
                f"{prefix}{name} out."
            )
    is_group = isinstance(given, dict)
    fields = [field for holder in (owner, *chosen.values()) for field in field_names(holder)]
    near = [f"{prefix}{field}" for field in difflib.get_close_matches(name, fields, n=1)]
    if name in fields:  # a group without a field, or a field taken for a group
        near = [f"{prefix}{name}"] if is_group else [f"{prefix}{name}.*"]
    hint = f" (nearest: {near[0]})" if near else ""
    path = prefix + name + (f".{next(iter(given))}" if is_group else "")
    valid = ", ".join(prefix + field for field in fields)
    return UsageError(f"no field {path!r}{hint}; valid: {valid}.")


def parse(text: str, wanted: Any) -> Any:
    """Reads `text` as a value of type `wanted`.

    Raises:
        ValueError: states what it must be.
    """
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        if text not in arguments:
            raise ValueError(must(wanted))
        return text
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in arguments:
            return None
        kinds = [a for a in arguments if a is not type(None)]
        if len(kinds) == 1:
            return parse(text, kinds[0])
        for kind in kinds:
            with contextlib.suppress(ValueError):
                return parse(text, kind)
        raise ValueError(must(wanted))
    if origin is tuple and arguments[-1] is not Ellipsis:  # the first may have colons of its own
        items = text.rsplit(":", len(arguments) - 1)
        if len(items) < len(arguments):
            raise ValueError(f"must have {len(arguments)} parts with a colon between, not {text!r}")
        return tuple(parse(*pair) for pair in zip(items, arguments, strict=True))
    if origin is tuple:
        inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
        items = [item.strip() for item in inner.split(",") if item.strip()]
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
    """Returns whether a field of type `wanted` may hold `value`."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(is_of(value, a) for a in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        is_pair = isinstance(value, (tuple, list)) and len(value) == len(arguments)
        return is_pair and all(map(is_of, value, arguments))
    if origin is tuple:
        return isinstance(value, (tuple, list)) and all(is_of(v, arguments[0]) for v in value)
    if wanted in (int, float):
        kinds = int if wanted is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    if wanted in (Model, Data) and (isinstance(value, type) or not dataclasses.is_dataclass(value)):
        return False
    return isinstance(value, wanted)


def must(wanted: Any) -> str:
    """Returns the rule for a field of type `wanted`, for a message: "must be ..."."""
    if typing.get_origin(wanted) is Literal:
        return f"must be one of {', '.join(map(str, typing.get_args(wanted)))}"
    if wanted in (Model, Data):
        return f"must be a dataclass as app.config.{wanted.__name__} says"
    if wanted is float:
        return "must be a finite number"
    return f"must be of type {wanted.__name__ if isinstance(wanted, type) else wanted}"
