"""The output of a prediction: shards, each done by one rank, joined in the input's order.

    out.jsonl.partial/job.json      what is predicted, by which weights
                     /00000.jsonl   shard 0: renamed to this name when all of it was written
                     /00000.counts  what its rows come to
                     /00002.jsonl
    out.jsonl                       all of them, at the end; the folder is gone then

A shard is a run of items whose place does not depend on the number of ranks: one that is done need
not be done again, whoever did it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from app import config
from app.errors import UsageError
from app.recovery import lock

SHARDS = 64  # about so many a job
MOST_BATCHES = 64  # of a shard

Row = Mapping[str, Any]  # of one item


class Shards:
    """Of one job.

    Args:
        output: the file at the end, .jsonl or .csv.
        items: how many.
        batch: items computed at once; a shard is whole batches.
        columns: of a .csv.
    """

    def __init__(self, output: Path, items: int, batch: int, columns: Sequence[str]) -> None:
        self.output, self.items, self.columns = output, items, list(columns)
        self.folder = output.with_name(f"{output.name}.partial")
        batches = -(-items // batch)
        self.size = batch * min(MOST_BATCHES, -(-batches // SHARDS))
        self.count = -(-items // self.size)

    def claim(self, job: Mapping[str, Any], stack: contextlib.ExitStack) -> None:
        """Begins the job, or goes on with it; has the folder for as long as `stack` lasts.

        Raises:
            UsageError: the output exists, cannot be written, was begun as another job, or one
                is at work on it.
        """
        if self.output.exists():
            raise UsageError(f"{self.output} exists: give another --output, or move it away.")
        path, ours = self.folder / "job.json", config.plain(job)
        try:
            stack.enter_context(lock.held(self.folder, "--output"))
            theirs = json.loads(path.read_text()) if path.exists() else ours
            lines = config.differences(ours, theirs)
            if lines:
                raise UsageError(
                    f"{self.folder} was begun as another job: {'; '.join(lines)}. Give the same, "
                    "or another --output."
                )
            partial = path.with_name(".job.json")
            partial.write_text(json.dumps(ours, indent=1) + "\n")
            partial.replace(path)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"cannot use {self.folder} ({error}): give another --output."
            ) from None

    def todo(self) -> list[int]:
        """Shards that are not done."""
        return [i for i in range(self.count) if not self._path(i).exists()]

    def places(self, shard: int) -> range:
        """Its items."""
        return range(shard * self.size, min((shard + 1) * self.size, self.items))

    def write(self, shard: int, rows: Sequence[Row]) -> None:
        """Keeps a shard that is done, and beside it what its rows come to.

        Raises:
            UsageError: it cannot be written.
        """
        path = self._path(shard)
        partial = path.with_name(f".{path.name}")
        try:
            self._counts(shard).write_text(json.dumps(counted(rows)))
            partial.write_text(self._text(rows), encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise UsageError(
                f"cannot write {path} ({error.strerror}): make room, or let it be written; the "
                "same command goes on with what is missing."
            ) from None

    def join(self) -> list[int]:
        """Writes the output, and removes the shards; returns what all rows come to.

        Raises:
            UsageError: it cannot be written.
        """
        partial = self.folder / "joined"
        try:
            with partial.open("wb") as file:
                if self._is_csv:
                    file.write(self._line(self.columns).encode())
                for shard in range(self.count):
                    file.write(self._path(shard).read_bytes())
            counts = [json.loads(self._counts(i).read_text()) for i in range(self.count)]
            partial.replace(self.output)
        except OSError as error:
            raise UsageError(
                f"cannot write {self.output} ({error.strerror}): make room, or let it be written; "
                "all machines of a job must share its folder."
            ) from None
        shutil.rmtree(self.folder)
        return [sum(column) for column in zip(*counts, strict=True)]

    @property
    def _is_csv(self) -> bool:
        return self.output.suffix == ".csv"

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}{self.output.suffix}"

    def _counts(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.counts"

    def _text(self, rows: Iterable[Row]) -> str:
        if not self._is_csv:
            return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return "".join(self._line([row.get(c, "") for c in self.columns]) for row in rows)

    @staticmethod
    def _line(values: Sequence[Any]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        return text.getvalue()


def counted(rows: Sequence[Row]) -> list[int]:
    """Items, those that could not be read, those with a label, and the right ones of these."""
    labelled = [row for row in rows if "label" in row and "error" not in row]
    right = sum(row["label"] == row.get("class", row.get("class_1")) for row in labelled)
    return [len(rows), sum("error" in row for row in rows), len(labelled), right]
