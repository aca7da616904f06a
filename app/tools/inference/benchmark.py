"""Implements `app benchmark inference`: measures prediction on many layouts, and names the best.

processes   1, 2, 4 ... as many as there are cores
threads     of each: one, or an equal part of the cores
stages      one, or --stages (2)                      each layout is a job (`cell.py`)
batch       --batch_sizes
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from app.errors import DONE
from app.launch import processes
from app.tools import rounds

SETTINGS = "NP={processes} --threads={threads} --stages={stages} --batch_size={batch_size}"
HEADING = "processes threads stages batch examples/s   p50 ms   p90 ms   p99 ms"
ROW = (
    "{processes:9} {threads:7} {stages:6} {batch_size:5} {examples_per_second:10.1f} {p50_ms:8.1f} "
    "{p90_ms:8.1f} {p99_ms:8.1f}"
)


class Cell(NamedTuple):
    """A layout: processes, and the cores and stages of each."""

    processes: int
    threads: int
    stages: int

    @property
    def file(self) -> str:
        """The name of the file of its measurements."""
        return f"{self.processes}x{self.threads}x{self.stages}.json"

    def rows(self, folder: Path) -> list[dict[str, Any]]:
        """Reads its measurements, one for each batch size."""
        return [self._asdict() | row for row in json.loads((folder / self.file).read_text())]


def cells(cores: int, stages: int) -> list[Cell]:
    """Returns the layouts that fit on so many cores; a stage has a core or more."""
    counts = [2**p for p in range(cores.bit_length()) if 2**p <= cores]
    every = [(p, t) for p in counts for t in sorted({1, cores // p})]
    return [Cell(p, t, s) for p, t in every for s in sorted({1, min(stages, t)})]


def main(flags: Sequence[str], cores: int, stages: int, folder: Path) -> int:
    """Measures every layout; prints and writes the report. Returns the first failure's exit code.

    Args:
        flags: of the experiment, or of the run.
        cores: of this machine.
        stages: of a process, at most.
        folder: of the report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    print(HEADING, flush=True)
    for cell in cells(cores, stages):
        log = folder / f"{cell.file}.log"
        code = measure(flags, cell, folder, log)
        if code != DONE:
            reason = processes.last_line(log)
            print(f"{cell} failed with exit code {code}: {reason}.", file=sys.stderr, flush=True)
            return code
        found = cell.rows(folder)
        print("\n".join(map(ROW.format_map, found)), flush=True)
        rows += found
    print("\n".join(advice(rows)))
    lines = [HEADING, *map(ROW.format_map, rows), "", *advice(rows)]
    rounds.write_report(folder, "inference", rows, lines)
    return DONE


def measure(flags: Sequence[str], cell: Cell, folder: Path, log: Path) -> int:
    """Measures a layout in a job of its own; returns its exit code."""
    command = [sys.executable, "-m", "app", "launch", "benchmark", "inference", *flags]
    command += [f"--threads={cell.threads}", f"--stages={cell.stages}", f"--output={folder}"]
    return processes.run(command, log, NP=str(cell.processes))


def advice(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the best settings on this machine, as flags."""
    fastest = max(rows, key=lambda row: row["examples_per_second"])
    quickest = min(rows, key=lambda row: row["p99_ms"])
    return [
        f"highest throughput: {SETTINGS.format_map(fastest)}: "
        f"{fastest['examples_per_second']:.1f} examples/s, p99 {fastest['p99_ms']:.1f} ms a batch",
        f"lowest latency: {SETTINGS.format_map(quickest)}: p99 "
        f"{quickest['p99_ms']:.1f} ms a batch, {quickest['examples_per_second']:.1f} examples/s",
    ]
