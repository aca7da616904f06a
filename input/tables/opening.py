"""Opens a table by its name: the format, and which rows are held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input import InputError, paths, remote, rows
from input.tables import arrow, columns, memory, npz, shards
from input.tables.columns import Columns

FIFTH = 5  # every fifth row is held out, where no other data are named
EVALUATION = ("test", "validation", "val")


class Part(NamedTuple):
    """Some rows of a table: numbers of them, int64 [N]."""

    columns: Columns
    rows: np.ndarray


def parts(
    dataset: str, evaluation: str | None, data_dir: str, wanted: Sequence[str],
    reads_all: bool = False, prepares: bool = False,
) -> tuple[Part, Part, str]:  # fmt: skip
    """Returns the training part, the part to evaluate, and the latter's name.

    Args:
        dataset: a name, path, pattern or URL.
        evaluation: likewise; None: a split of the same data, or every fifth of its rows.
        data_dir: below which copies and indices are.
        wanted: columns that are read.
        reads_all: whether others are read too.
        prepares: whether to write copies and indices that are not there.

    Raises:
        InputError: the data cannot be read, have no such column, or are not prepared.
    """
    splits = _splits(dataset, data_dir, wanted, reads_all, prepares)
    for table in splits.values():
        columns.require(table.path, table.names, wanted)
    train = splits.get("train") or next(iter(splits.values()))
    if evaluation:
        (held, *_) = _splits(evaluation, data_dir, wanted, reads_all, prepares).values()
        columns.require(held.path, held.names, wanted)
        return _whole(train), _whole(held), "test"
    for split in EVALUATION:
        if split in splits:
            return _whole(train), _whole(splits[split]), split
    every = np.arange(len(train))
    is_held = every % FIFTH == FIFTH - 1
    if not is_held.any():
        raise InputError(
            f"{train.path} has too few rows ({len(train)}) to hold a fifth out: give "
            "data.evaluation_dataset."
        )
    return Part(train, every[~is_held]), Part(train, every[is_held]), "test"


def _whole(table: Columns) -> Part:
    return Part(table, np.arange(len(table)))


def _splits(
    dataset: str, data_dir: str, wanted: Sequence[str], reads_all: bool, prepares: bool
) -> dict[str, Columns]:
    if dataset == "diabetes":
        return {"train": memory.diabetes()}
    suffix = Path(dataset).suffix.lower()
    folder = paths.expand_user(dataset)
    if not remote.is_url(dataset) and folder.is_dir():
        if arrow.is_datasets_folder(folder):
            return dict(arrow.datasets_folder(folder))
        files = sorted(folder.glob("*.npz"))
        if not files:
            raise InputError(
                f"{folder} has neither .npz files nor what `datasets.save_to_disk` writes: name "
                "one of them, or files by a pattern as '*.parquet' or '*.tar'."
            )
        return {"train": npz.NpzFolder(dataset, files)}
    if suffix == ".parquet":
        return {"train": arrow.parquet(dataset, data_dir, prepares)}
    if suffix == ".tar":
        return {"train": shards.shards(dataset, data_dir, prepares)}
    if suffix != ".npz" and rows.form_of(Path(dataset)) is None:
        raise InputError(
            f"{paths.shown(dataset)} may be of any format: name a .csv, .tsv, .jsonl, .parquet, "
            ".npz or .tar file, or a folder."
        )
    files = [remote.local(name, data_dir, prepares) for name in remote.find(dataset)]
    if suffix == ".npz":
        return {"train": npz.NpzFolder(dataset, files)}
    if len(files) > 1:
        raise InputError(f"{dataset} are {len(files)} files: of this format one is read.")
    return {"train": memory.Delimited(files[0], wanted, reads_all)}
