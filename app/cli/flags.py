"""Reads the flags of a command: types, bounds, and what is wrong with them in a sentence.

A command owns its flags (`app/commands/NAME.py`); groups that several share are in `groups.py`.
"""

import difflib
import math
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any

from absl import flags
from absl.flags import FlagValues

from app.errors import UsageError


class Number(flags.FloatParser):
    """Parses a number within bounds; those of absl's own parser let NaN pass, and infinity."""

    def __init__(self, least: float, most: float | None = None, rule: str = "") -> None:
        super().__init__(least, most)
        self._bounds = least, sys.float_info.max if most is None else most
        self.syntactic_help = rule or self.syntactic_help.replace("a ", "a finite ", 1)

    def is_outside_bounds(self, value: float) -> bool:
        """Returns whether `value` may not be given."""
        return not self._bounds[0] <= value <= self._bounds[1]


SECONDS = Number(1, math.inf, "a number of seconds, at least 1")


class Integers(flags.ArgumentParser[tuple[int, ...]]):
    """Parses numbers of at least 1, as `example` has them."""

    def __init__(self, example: str) -> None:
        super().__init__()
        self.syntactic_help = f"numbers of at least 1, as {example}"

    def parse(self, argument: Any) -> tuple[int, ...]:
        """Returns them; raises ValueError for anything else."""
        numbers = tuple(int(text) for text in argument.split(",")) if argument else ()
        if any(number < 1 for number in numbers):
            raise ValueError(argument)
        return numbers

    def flag_type(self) -> str:
        """Names the type in a help text."""
        return "comma-separated integers"


def define(
    parser: flags.ArgumentParser[Any], name: str, default: Any, help: str, **group: Any
) -> None:
    """Defines a flag that one of the parsers above reads, its default too if that is a text."""
    is_list = isinstance(parser, Integers)
    serializer: Any = flags.ListSerializer(",") if is_list else flags.ArgumentSerializer()
    flags.DEFINE(parser, name, default, help, serializer=serializer, **group)


def parse(values: FlagValues, command: str, arguments: Sequence[str]) -> None:
    """Reads the flags of a command.

    Raises:
        UsageError: one that the command does not have, that is empty, or not of its type.
    """
    see = f"`./run.sh {command} --help` lists its flags."
    try:
        left = values([command, *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, values, n=1)
        hint = f" (nearest: --{near[0]})" if near else ""
        raise UsageError(f"{command} has no flag --{error.flagname}{hint}: {see}") from None
    except flags.Error as error:
        raise UsageError(_explain(values, str(error), see)) from None
    if left:
        raise UsageError(f"{command} takes flags only, not {left[0]!r}: {see}")
    for name in values:
        if values[name].present and values[name].value in ("", [], ()):
            raise UsageError(f"--{name}= is empty: give it a value, or leave it out.")


def _explain(values: FlagValues, message: str, see: str) -> str:
    """Says what the value of a flag must be, where absl only says that it is wrong."""
    match = re.match(r"flag (--(\w+)=.*?): ", message, re.DOTALL)
    if not match:
        return f"{message.removeprefix('ERROR:: ')}: {see}"
    parser = values[match[2]].parser
    names = getattr(parser, "enum_values", ("true", "false"))
    return f"{match[1]} must be {parser.syntactic_help or ' or '.join(names)}."


def to_arguments(values: FlagValues, leave_out: Collection[str] = ()) -> list[str]:
    """Returns the flags that were given, as arguments of another command."""
    given = [values[name] for name in values if values[name].present and name not in leave_out]
    return [argument for flag in given for argument in _arguments(flag)]


def _arguments(flag: flags.Flag) -> list[str]:
    """Returns an argument for each time that a flag was given; a value may have line breaks."""
    if isinstance(flag, flags.MultiFlag):
        return [f"--{flag.name}={value}" for value in flag.value or ()]
    return [flag.serialize()]


def describe(values: FlagValues) -> str:
    """Returns the flags by group, each with its meaning, type and default."""
    return "\n".join(values.module_help(title) for title in values.flags_by_module_dict())
