"""`app benchmark inference`: throughput and latency of prediction by layout, and the best of them.

processes   1 . . . as many as there are cores
threads     of each: one, or its share of the cores
stages      one, or --stages (2)                      each a job of its own (`cell.py`)
batch       --batch_sizes
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from app.errors import DONE
from app.launch import processes


class Cell(NamedTuple):
    """A layout: processes, cores of each, stages of each."""

    processes: int
    threads: int
    stages: int

    @property
    def file(self) -> str:
        """The name of the file of its measurements."""
        return f"{self.processes}x{self.threads}x{self.stages}.json"

    def rows(self, folder: Path) -> list[dict[str, Any]]:
        """Reads its measurements, one for each size of a batch."""
        return [self._asdict() | row for row in json.loads((folder / self.file).read_text())]


def cells(cores: int, stages: int) -> list[Cell]:
    """Layouts that fit on so many cores; a stage has a core or more."""
    counts = [2**p for p in range(cores.bit_length()) if 2**p <= cores]
    every = [(p, t) for p in counts for t in sorted({1, cores // p})]
    return [Cell(p, t, s) for p, t in every for s in sorted({1, min(stages, t)})]


def main(flags: Sequence[str], cores: int, stages: int, folder: Path) -> int:
    """Measures every layout; prints and writes the report. Returns the first failure's exit code.

    Args:
        flags: of the experiment, or of the run.
        cores: of this machine.
        stages: most of a process.
        folder: of the report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    print(heading(), flush=True)
    for cell in cells(cores, stages):
        log = folder / f"{cell.file}.log"
        code = measure(flags, cell, folder, log)
        if code != DONE:
            print("\n".join(log.read_text().splitlines()[-1:]), file=sys.stderr)
            print(f"{cell} failed with exit code {code}; see {log}.", file=sys.stderr, flush=True)
            return code
        found = cell.rows(folder)
        print("\n".join(map(line, found)), flush=True)
        rows += found
    lines = [heading(), *map(line, rows), "", *advice(rows)]
    (folder / "inference.json").write_text(json.dumps(rows, indent=1) + "\n")
    (folder / "inference.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(advice(rows)))
    print(f"report: {folder / 'inference.txt'}, inference.json")
    return DONE


def measure(flags: Sequence[str], cell: Cell, folder: Path, log: Path) -> int:
    """Measures a layout in a job of its own; returns its exit code."""
    command = [sys.executable, "-m", "app", "launch", "benchmark", "inference", *flags]
    command += [f"--threads={cell.threads}", f"--stages={cell.stages}", f"--output={folder}"]
    with log.open("w") as output:
        return subprocess.run(
            command, env=os.environ | {"NP": str(cell.processes)}, stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, preexec_fn=processes.die_with_parent,
        ).returncode  # fmt: skip


def heading() -> str:
    """Of the table."""
    return (
        f"{'processes':>9} {'threads':>7} {'stages':>6} {'batch':>5} {'examples/s':>10} "
        f"{'p50 ms':>8} {'p90 ms':>8} {'p99 ms':>8}"
    )


def line(row: dict[str, Any]) -> str:
    """Of the table."""
    return (
        f"{row['processes']:9} {row['threads']:7} {row['stages']:6} {row['batch_size']:5} "
        f"{row['examples_per_second']:10.1f} {row['p50_ms']:8.1f} {row['p90_ms']:8.1f} "
        f"{row['p99_ms']:8.1f}"
    )


def advice(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The best settings on this machine, as commands take them."""
    most = max(rows, key=lambda row: row["examples_per_second"])
    soonest = min(rows, key=lambda row: row["p99_ms"])
    return [
        f"most a second: NP={most['processes']} --threads={most['threads']} "
        f"--stages={most['stages']} --batch_size={most['batch_size']}: "
        f"{most['examples_per_second']:.1f} examples/s, p99 {most['p99_ms']:.1f} ms a batch",
        f"soonest: NP={soonest['processes']} --threads={soonest['threads']} "
        f"--stages={soonest['stages']} --batch_size={soonest['batch_size']}: p99 "
        f"{soonest['p99_ms']:.1f} ms a batch, {soonest['examples_per_second']:.1f} examples/s",
    ]
