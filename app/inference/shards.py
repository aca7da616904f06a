"""Keeps the output of a prediction in shards, which are joined in the input's order at the end.

    out.jsonl.partial/job.json      what is predicted, with which weights
                     /00000.jsonl   shard 0; it has this name once it is complete
                     /00000.counts  what its rows add up to
                     /00002.jsonl
    out.jsonl                       all of them, at the end; the folder is removed then

A shard is a run of items that does not depend on the number of ranks. One that is complete need
not be predicted again, whichever rank wrote it.
"""

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.cli import workdir
from app.errors import UsageError
from app.recovery import atomic_file, lock

SHARDS = 64  # of a job, about
MAX_BATCHES = 64  # of a shard

Row = Mapping[str, Any]  # of one item


class Shards:
    """The shards of one job.

    Args:
        output: the file at the end, .jsonl or .csv.
        items: their number.
        batch: items computed at once; a shard is whole batches.
        columns: of a .csv.
    """

    def __init__(self, output: Path, items: int, batch: int, columns: Sequence[str]) -> None:
        self.output, self.items, self.batch, self.columns = output, items, batch, list(columns)
        self.folder = output.with_name(f"{output.name}.partial")
        self.is_csv = output.suffix == ".csv"
        batches = -(-items // batch)
        self.size = batch * min(MAX_BATCHES, -(-batches // SHARDS))
        self.count = -(-items // self.size)

    def claim(self, job: dict[str, Any], stack: contextlib.ExitStack) -> None:
        """Begins or continues a job, and locks its folder for as long as `stack` lasts.

        Raises:
            UsageError: the output exists or cannot be written, the folder is another job's, or
                another process is at work on it.
        """
        if self.output.exists():
            raise UsageError(f"{self.output} exists: give another --output, or move it away.")
        try:
            stack.enter_context(lock.held(self.folder, "--output"))
            workdir.settle(self.folder / "job.json", job, "another job", "--output")
        except (OSError, ValueError) as error:
            raise UsageError(
                f"cannot use {self.folder} ({error}): give another --output."
            ) from None

    def todo(self) -> list[int]:
        """Returns the shards that are not complete."""
        return [i for i in range(self.count) if not self._path(i).exists()]

    def indices(self, shard: int) -> range:
        """Returns the indices of a shard's items."""
        return range(shard * self.size, min((shard + 1) * self.size, self.items))

    def write(self, shard: int, rows: Sequence[Row]) -> None:
        """Writes a complete shard, and beside it what its rows add up to.

        Raises:
            UsageError: it cannot be written.
        """
        path = self._path(shard)
        try:
            self._counts(shard).write_text(json.dumps(count(rows)))
            atomic_file.write_text(path, self._text(rows))
        except OSError as error:
            raise UsageError(
                f"cannot write {path} ({error.strerror}): make room, or permit it; the same "
                "command goes on with what is missing."
            ) from None

    def join(self) -> list[int]:
        """Writes the output and removes the shards; returns what all rows add up to (`count`).

        Raises:
            UsageError: the output cannot be written.
        """
        try:
            atomic_file.write(self.output, self._parts())
            counts = [json.loads(self._counts(i).read_text()) for i in range(self.count)]
        except OSError as error:
            raise UsageError(
                f"cannot write {self.output} ({error.strerror}): make room, or permit it; all "
                "machines of a job must share its folder."
            ) from None
        shutil.rmtree(self.folder)
        return [sum(column) for column in zip(*counts, strict=True)]

    def _parts(self) -> Iterator[bytes]:
        if self.is_csv:
            yield _line(self.columns).encode()
        for shard in range(self.count):
            yield self._path(shard).read_bytes()

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}{self.output.suffix}"

    def _counts(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.counts"

    def _text(self, rows: Iterable[Row]) -> str:
        if not self.is_csv:
            return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return "".join(_line([row.get(c, "") for c in self.columns]) for row in rows)


def count(rows: Sequence[Row]) -> list[int]:
    """Returns how many rows there are, with errors, with class and label, and where they agree."""
    classified = [row for row in rows if "class" in row or "class_1" in row]
    labelled = [row for row in classified if "label" in row]
    right = sum(row["label"] == row.get("class", row.get("class_1")) for row in labelled)
    return [len(rows), sum("error" in row for row in rows), len(labelled), right]


def _line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
