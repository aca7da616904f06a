"""Configures data in columns, without importing TensorFlow.

opening.py    name -> format, training rows, rows to evaluate
arrow.py      Parquet files, Hugging Face `datasets` folders
npz.py        folders of .npz files
shards.py     tar shards, with an index
memory.py     CSV, TSV, JSON; scikit-learn's diabetes
sources.py    columns -> inputs and targets; encoded images or texts for `Images` and `Text`
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from input import baselines, remote
from input.config import DataConfig, data_set

if TYPE_CHECKING:
    from input.indexed import IndexedDataSet

DIABETES = "progression"  # the target of scikit-learn's set


@dataclass(frozen=True)
class Table(DataConfig):
    """Columns of a table as inputs and targets.

    Inputs are float32 [b, n], the numbers of all columns in order; of one column only they have the
    column's own shape. With `raw` they are a dictionary: `numbers`, and string [b] by column.

    Attributes:
        dataset: `diabetes` (scikit-learn's), a .csv, .tsv or .jsonl, .parquet or .npz or .tar file
            or pattern (`train/*.tar`), a folder of .npz files or of `datasets.save_to_disk`; also a
            URL as `s3://bucket/train/*.parquet`.
        inputs: columns of numbers, or of lists of numbers of one length; none: all that are neither
            in `raw` nor `targets`.
        targets: columns.
        predicts: `numbers` (float32 [b, D]), `class` (one column, float32 [b, K]), or `labels`:
            whether each of the columns holds, 0 or 1 (float32 [b, K]).
        raw: columns that stay text or bytes.
        classes: of `predicts=class`, in the order of their numbers; none: the column's values,
            sorted. Of one target column of `predicts=labels`, the names of its numbers.
        evaluation_dataset: as `dataset`; None: a split `test`, `validation` or `val` of the same
            folder, or else every fifth row, which is then not trained on.
    """

    dataset: str
    inputs: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    predicts: Literal["numbers", "class", "labels"] = "numbers"
    raw: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    evaluation_dataset: str | None = None

    def __post_init__(self) -> None:
        for name in (self.dataset, self.evaluation_dataset or ""):
            remote.require_no_credentials(name)
        if not self.dataset or not self._targets:
            raise ValueError("dataset and targets must not be empty")
        if self.predicts == "class" and len(self.targets) != 1:
            raise ValueError(f"predicts=class needs one column in targets, not {self.targets}")
        both = sorted(({*self.inputs} | {*self.raw}) & {*self._targets})
        if both:
            raise ValueError(f"inputs and targets must differ: both have {', '.join(both)}")

    @property
    def _targets(self) -> tuple[str, ...]:
        return self.targets or ((DIABETES,) if self.dataset == "diabetes" else ())

    def prepare(self, data_dir: str) -> str:
        """See the base class; writes copies and indices below `data_dir`."""
        self._open(data_dir, prepares=True)
        return super().prepare(data_dir)

    def open(self, data_dir: str) -> IndexedDataSet:
        """See the base class."""
        return self._open(data_dir, prepares=False)

    def _open(self, data_dir: str, prepares: bool) -> IndexedDataSet:
        from input.tables import opening, sources

        wanted = (*self.inputs, *self.raw, *self._targets)
        *both, split = opening.parts(
            self.dataset, self.evaluation_dataset, data_dir, wanted, not self.inputs, prepares
        )
        names, classes = both[0].columns.names, self.classes
        others = tuple(x for x in names if x not in (*self.raw, *self._targets))
        inputs = self.inputs or (() if self.raw else others)
        if self.predicts == "class":
            classes = sources.classes_of(both[0], self._targets[0], classes)
        elif self.predicts == "labels":
            classes = classes or self._targets
        made = [
            sources.Numbers(part, inputs, self.raw, self._targets, self.predicts, classes)
            for part in both
        ]
        data = data_set(made[0], made[1], split)
        if self.predicts == "numbers" and not self.raw:
            simple = functools.partial(baselines.of_numbers, made[0], made[1])
            data.baseline = simple  # type: ignore[method-assign]
        data.meaning = {"inputs": [*inputs, *self.raw], "targets": list(self._targets)}
        return data
