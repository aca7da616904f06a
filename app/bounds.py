"""Types of fields that state which numbers they allow: `momentum: Fraction = 0.9`.

A bound of your own is `Annotated[float, Bound("in (0, 1]", lambda x: 0 < x <= 1)]`.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin


class Bound(NamedTuple):
    """A rule that a number must keep.

    Attributes:
        rule: completes "must be ..." in a message.
        allows: whether a number keeps it; false for NaN.
    """

    rule: str
    allows: Callable[[Any], bool]


Finite = Annotated[float, Bound("finite", math.isfinite)]
Positive = Annotated[float, Bound("above 0 and finite", lambda x: 0 < x < math.inf)]
NonNegative = Annotated[float, Bound("at least 0 and finite", lambda x: 0 <= x < math.inf)]
Fraction = Annotated[float, Bound("in [0, 1)", lambda x: 0 <= x < 1)]
Count = Annotated[int, Bound("at least 1", lambda n: n >= 1)]
Natural = Annotated[int, Bound("at least 0", lambda n: n >= 0)]


def violation(value: Any, wanted: Any) -> tuple[Any, str] | None:
    """Returns the first number in `value` that its type does not allow, and the rule it breaks.

    Args:
        value: of a field; its Python type is right.
        wanted: the field's type, as `typing.get_type_hints(..., include_extras=True)` has it.
    """
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        bounds = [extra for extra in arguments[1:] if isinstance(extra, Bound)]
        broken = next((bound for bound in bounds if not bound.allows(value)), None)
        return (value, broken.rule) if broken else violation(value, arguments[0])
    if origin is tuple and arguments[-1] is not Ellipsis:
        pairs = zip(value, arguments, strict=True)
        return next(filter(None, (violation(item, kind) for item, kind in pairs)), None)
    if origin is tuple:
        return next(filter(None, (violation(item, arguments[0]) for item in value)), None)
    if origin in (Union, types.UnionType) and value is not None:
        return violation(value, next(a for a in arguments if a is not type(None)))
    return None
