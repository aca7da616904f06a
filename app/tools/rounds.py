"""Measures what is compared in rounds, by turns, and writes reports.

round 0   a b c
round 1   b c a      a machine's speed changes within minutes, and what came before warms it
round 2   c a b
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Name = TypeVar("Name")
Figure = TypeVar("Figure")


def by_turns(
    names: Iterable[Name], rounds: int, measure: Callable[[Name, int], Figure]
) -> dict[Name, list[Figure]]:
    """Calls `measure` with each name and the number of the round; returns its results by name."""
    order = list(names)
    figures: dict[Name, list[Figure]] = {name: [] for name in order}
    for number in range(rounds):
        first = number % len(order)
        for name in order[first:] + order[:first]:
            figures[name].append(measure(name, number))
    return figures


def write_report(
    folder: Path, name: str, rows: Sequence[dict[str, Any]], lines: Sequence[str]
) -> None:
    """Writes rows as NAME.json and the text of the report as NAME.txt; prints where they are."""
    (folder / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    print(f"report: {folder / name}.txt, {name}.json")
