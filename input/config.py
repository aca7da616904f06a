"""Makes data of your own: a configuration, and a split that reads examples by index in NumPy.

All that there is to write; `docs/data.md` explains it, and a test runs it:

    import numpy as np
    from dataclasses import dataclass
    from input.config import DataConfig, Source, data_set

    @dataclass(frozen=True)
    class Houses(DataConfig):
        def open(self, data_dir):
            rows = np.load("houses.npy")
            return data_set(Rows(rows[:-100]), Rows(rows[-100:]))

    class Rows(Source):
        def __init__(self, rows):
            self.rows = rows

        def __len__(self):
            return len(self.rows)

        def fetch(self, ids):
            return self.rows[ids, :-1], self.rows[ids, -1]
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from input.source import Source

if TYPE_CHECKING:
    from input.batches import DataSet
    from input.indexed import IndexedDataSet


class DataConfig:
    """The base of a frozen dataclass that configures data: give it `open`.

    Its fields are set with `--set data.<field>=...` and recorded in config.json. Credentials
    do not belong there, but into the environment.
    """

    @abstractmethod
    def open(self, data_dir: str) -> DataSet:
        """Opens the data.

        Args:
            data_dir: below which `prepare` may write.

        Raises:
            InputError: the data cannot be opened, or are not prepared.
        """

    def prepare(self, data_dir: str) -> str:
        """Opens the data and reads every example once; returns a report on them.

        Raises:
            InputError: names what cannot be used.
        """
        from input import survey
        from input.indexed import IndexedDataSet

        data = self.open(data_dir)
        owner = type(self).__name__
        return survey.report(owner, data) if isinstance(data, IndexedDataSet) else owner


def data_set(training: Source, held_out: Source, evaluation_split: str = "test") -> IndexedDataSet:
    """Makes the data set of a training and an evaluation split.

    Raises:
        InputError: the first example cannot be read, or the classes do not fit the targets.
    """
    from input.indexed import IndexedDataSet

    return IndexedDataSet(training, held_out, evaluation_split)
