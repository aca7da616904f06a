"""Shows classes before they train: how many examples each has, and what looks wrong."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

from input import InputError, paths

FEW = 5  # training examples, below which a class is named
MOST_ROWS = 40  # of a table; of more classes only the smallest are shown
SMALLEST = 10
MISSING = {"", "nan", "none", "null", "na", "n/a", "<na>", "undefined", "unknown", "?", "-"}


def report(classes: Sequence[str], counts: Mapping[str, Sequence[int]]) -> list[str]:
    """Returns a table of the classes, then warnings of what looks wrong with them.

    Args:
        classes: their names, in order of their numbers.
        counts: by split, training first: examples of each class.
    """
    return [*_table(classes, counts), *(f"warning: {text}" for text in doubts(classes, counts))]


def must_be_some(classes: Sequence[str], where: str) -> None:
    """Refuses data from which nothing can be learned.

    Raises:
        InputError: fewer than two classes.
    """
    if len(classes) < 2:
        raise InputError(
            f"{where} has {len(classes)} class{'es' * (not classes)} "
            f"({', '.join(map(paths.shown, classes)) or 'none'}): training needs 2 or more."
        )


def doubts(classes: Sequence[str], counts: Mapping[str, Sequence[int]]) -> list[str]:
    """Returns a sentence on each thing that looks wrong."""
    found = []
    alike = defaultdict(list)
    for name in classes:
        alike[plainest(name)].append(name)
    for names in alike.values():
        if len(names) > 1:
            found.append(
                f"the classes {' and '.join(map(repr, names))} differ only in case, white space, "
                "quotation marks, invisible characters or the format of a number: are they one?"
            )
    for name in classes:
        if plainest(name) in MISSING:
            found.append(f"the class {name!r} looks like a label that is missing.")
    for split, each in counts.items():
        least = FEW if split == next(iter(counts)) else 1
        few = [(n, name) for name, n in zip(classes, each, strict=True) if n < least]
        if few:
            some = ", ".join(f"{name!r} {n}" for n, name in sorted(few)[:SMALLEST])
            more = f" and {len(few) - SMALLEST} more" if len(few) > SMALLEST else ""
            found.append(f"few examples in {split}: {some}{more}.")
    return found


def plainest(name: str) -> str:
    """A name without what is easily mistaken: names that are alike in it may be one class."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc", "Zs", "Zl", "Zp"))
    text = text.strip("\"'[](){}\u2018\u2019\u201c\u201d")
    if re.fullmatch(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", text) and len(text) < 100:
        return repr(float(text))
    return text


def _table(classes: Sequence[str], counts: Mapping[str, Sequence[int]]) -> list[str]:
    places = list(range(len(classes)))
    if len(places) > MOST_ROWS:
        first = next(iter(counts.values()))
        places = sorted(sorted(places, key=lambda i: first[i])[:SMALLEST])
    names = [_one_line(classes[i]) for i in places]
    width = max(map(len, ["class", *names]))
    head = "".join(f"{split:>12}" for split in counts)
    lines = [f"{'':5} {'class':{width}}{head}"]
    for i, name in zip(places, names, strict=True):
        numbers = "".join(f"{each[i]:12,}" for each in counts.values())
        lines.append(f"{i:5} {name:{width}}{numbers}")
    if len(classes) > MOST_ROWS:
        ranges = "; ".join(
            f"{split}: {min(each):,} to {max(each):,} a class" for split, each in counts.items()
        )
        lines.append(f"      the {len(places)} smallest of {len(classes):,} ({ranges})")
    return lines


def _one_line(name: str) -> str:
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in paths.shown(name))
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
