"""Lists the experiments."""

import inspect

from absl.flags import FlagValues

from app import experiments

SECTION = "Set up"
FLAGS = FlagValues()


def run(flags: FlagValues) -> None:
    """Prints each name with the first line of its card."""
    for name, function in experiments.named().items():
        print(f"{name:24} {(inspect.getdoc(function) or '').splitlines()[0]}")
