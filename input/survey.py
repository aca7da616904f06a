"""Describes a data set after reading every example once: counts, shapes, classes, ranges."""

from __future__ import annotations

from typing import Any

import numpy as np

from input import labels, nests
from input.indexed import IndexedDataSet


def report(owner: str, data: IndexedDataSet) -> str:
    """Returns lines on both splits.

    Args:
        owner: the name of the data.
        data: opened.

    Raises:
        InputError: names the example that cannot be used.
    """
    found: dict[str, list[Any]] = {}
    for split, targets in data.survey():
        found.setdefault(split, []).append(targets)
    sizes = {"train": data.num_train, data.evaluation_split: data.num_evaluation}
    counts = ", ".join(f"{split} {n:,}" for split, n in sizes.items())
    inputs, targets = (_shapes(specs) for specs in data.specs)
    if data.targets.meaning == "class":
        targets = f"one of {data.num_classes} classes"
    lines = [f"{owner} ({counts}): inputs {inputs}; targets {targets}"]
    if data.targets.meaning == "class":
        every = {split: np.concatenate(parts) for split, parts in found.items()}
        numbers = {s: np.bincount(x, minlength=data.num_classes).tolist() for s, x in every.items()}
        return "\n".join([*lines, *labels.report(data.classes, numbers)])
    if data.targets.meaning == "labels":
        return "\n".join([*lines, *_shares(data, found)])
    for split, parts in found.items():
        for path, _ in nests.flatten(data.specs[1]):
            arrays = [dict(nests.flatten(part))[path] for part in parts]
            values = np.concatenate([x.astype(np.float64).ravel() for x in arrays])
            lines.append(
                f"{split}: targets{path} from {values.min():.4g} to {values.max():.4g}, mean "
                f"{values.mean():.4g}, standard deviation {values.std():.4g}"
            )
    return "\n".join(lines)


def _shares(data: IndexedDataSet, found: dict[str, list[Any]]) -> list[str]:
    means = {split: np.concatenate(parts).mean(0) for split, parts in found.items()}
    lines = [f"{'holds for':20}" + "".join(f"{split:>12}" for split in means)]
    for place, name in enumerate(data.classes):
        lines.append(f"{name:20}" + "".join(f"{x[place]:12.1%}" for x in means.values()))
    return lines


def _shapes(specs: Any) -> str:
    parts = [
        f"{path.strip('[]') or ''} {spec.dtype} {list(spec.shape)}".strip()
        for path, spec in nests.flatten(specs)
    ]
    return ", ".join(parts)
