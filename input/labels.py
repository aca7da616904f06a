"""Checks the classes of a data set and their examples before training, and reports them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from input import InputError, paths
from input.source import Source

CHUNK = 1024  # examples read at once to count their labels
FEW = 5  # training examples: classes with fewer are named
MAX_ROWS = 40  # of a table; of more classes only the smallest are shown
SMALLEST = 10
MISSING = {"", "nan", "none", "null", "na", "n/a", "<na>", "undefined", "unknown", "?", "-"}


def check_label(label: int, num_classes: int) -> None:
    """Checks an example's class.

    Raises:
        ValueError: there is no such class.
    """
    if not 0 <= label < num_classes:
        fault = f"label {label} is not in [0, {num_classes})"
        if label >= 0:
            raise ValueError(f"{fault}: correct it, or name all classes")
        raise ValueError(
            f"{fault}: a split without labels (as glue's test) can be predicted, but not train or "
            "be evaluated; set data.train_split or data.evaluation_split to one with labels"
        )


def has_labels(source: Source) -> bool:
    """Returns whether a few examples, spread over a split, have labels."""
    last = len(source) - 1
    _, labels = source.fetch(sorted({0, last // 3, last // 2, last})) if last >= 0 else ([], [])
    return any(0 <= label < len(source.classes) for label in labels)


def require_labels(source: Source, split: str) -> None:
    """Refuses a split that cannot be evaluated.

    Raises:
        InputError: it has no labels.
    """
    if not has_labels(source):
        raise InputError(
            f"split {split!r} has no labels ({source.name(0)}): evaluate another, named by "
            "data.evaluation_split; predict takes it as --input=split:" + split + "."
        )


def require_classes(classes: Sequence[str], owner: str) -> None:
    """Refuses data with fewer than two classes, from which nothing can be learned.

    Raises:
        InputError: names the owner, the data set.
    """
    if len(classes) < 2:
        raise InputError(
            f"{owner} has {len(classes)} class{'es' * (not classes)} "
            f"({', '.join(map(paths.shown, classes)) or 'none'}): training needs 2 or more."
        )


def require_text(classes: Iterable[str], folder: Path) -> None:
    """Checks that names of class folders can stand in graphs, JSON, CSV and lists of lines.

    Raises:
        InputError: a name is not UTF-8, or has a line break.
    """
    for name in classes:
        if "\n" in name or "\r" in name:
            raise InputError(
                f"{paths.shown(str(folder))}: the folder {name!r} has a line break in its name, "
                "which is the name of a class: rename it."
            )
        if paths.shown(name) != name:
            raise InputError(
                f"{paths.shown(str(folder))}: the name of the folder {paths.shown(name)!r} is the "
                "name of a class, and is not UTF-8: rename it, or all of them from their encoding, "
                "as with `convmv -r -f latin1 -t utf8 --notest`."
            )


def count(source: Source) -> list[int]:
    """Reads a split and returns the number of examples of each class.

    Raises:
        InputError: names an example without a valid label.
    """
    counts = [0] * len(source.classes)
    for start in range(0, len(source), CHUNK):
        ids = range(start, min(start + CHUNK, len(source)))
        for i, label in zip(ids, source.fetch(ids)[1], strict=True):
            try:
                check_label(label, len(counts))
            except ValueError as error:
                raise InputError(f"{source.name(i)}: {error}.") from None
            counts[label] += 1
    return counts


def cached_count(source: Source, data_dir: str) -> list[int]:
    """Returns `count`, which is stored below `data_dir` for the next time."""
    about = f"{source.name(0)} {len(source)} {source.classes}"
    digest = hashlib.sha256(about.encode()).hexdigest()[:16]
    path = paths.expand_user(data_dir) / "label_counts" / f"{digest}.json"
    if path.exists():
        stored: list[int] = json.loads(path.read_text())
        return stored
    counts = count(source)
    with contextlib.suppress(OSError), paths.replacing(path) as partial:  # may be read-only
        partial.write_text(json.dumps(counts))
    return counts


def report(classes: Sequence[str], counts: Mapping[str, Sequence[int]]) -> list[str]:
    """Returns a table of the classes, then warnings of what looks wrong with them.

    Args:
        classes: their names, in the order of their numbers.
        counts: by split, training first: examples of each class.
    """
    return [*_table(classes, counts), *(f"warning: {text}" for text in doubts(classes, counts))]


def doubts(classes: Sequence[str], counts: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Yields a sentence on each thing that looks wrong."""
    alike = defaultdict(list)
    for name in classes:
        alike[plainest(name)].append(name)
    for names in alike.values():
        if len(names) > 1:
            yield (
                f"the classes {' and '.join(map(repr, names))} differ only in case, white space, "
                "quotation marks, invisible characters or the format of a number: are they one?"
            )
    for name in classes:
        if plainest(name) in MISSING:
            yield f"the class {name!r} looks like a label that is missing."
    for place, (split, numbers) in enumerate(counts.items()):
        least = 1 if place else FEW
        few = [(n, name) for name, n in zip(classes, numbers, strict=True) if n < least]
        if few:
            some = ", ".join(f"{name!r} {n}" for n, name in sorted(few)[:SMALLEST])
            more = f" and {len(few) - SMALLEST} more" if len(few) > SMALLEST else ""
            yield f"few examples in {split}: {some}{more}."


def plainest(name: str) -> str:
    """Returns a name without what is easily overlooked: two equal ones may be one class."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc", "Zs", "Zl", "Zp"))
    text = text.strip("\"'[](){}\u2018\u2019\u201c\u201d")
    if re.fullmatch(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", text) and len(text) < 100:
        return repr(float(text))
    return text


def _table(classes: Sequence[str], counts: Mapping[str, Sequence[int]]) -> list[str]:
    places = list(range(len(classes)))
    if len(places) > MAX_ROWS:
        first = next(iter(counts.values()))
        places = sorted(sorted(places, key=lambda i: first[i])[:SMALLEST])
    names = [_one_line(classes[i]) for i in places]
    width = max(map(len, ["class", *names]))
    head = "".join(f"{split:>12}" for split in counts)
    lines = [f"{'':5} {'class':{width}}{head}"]
    for i, name in zip(places, names, strict=True):
        cells = "".join(f"{numbers[i]:12,}" for numbers in counts.values())
        lines.append(f"{i:5} {name:{width}}{cells}")
    if len(classes) > MAX_ROWS:
        ranges = "; ".join(
            f"{split}: {min(numbers):,} to {max(numbers):,} a class"
            for split, numbers in counts.items()
        )
        lines.append(f"      the {len(places)} smallest of {len(classes):,} ({ranges})")
    return lines


def _one_line(name: str) -> str:
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in paths.shown(name))
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
