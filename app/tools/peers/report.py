"""Formats the table of `benchmark peers`."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Of a processor, that kernels are chosen by.
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def processor(path: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the name of this machine's processor, and those of its features that matter."""
    text = path.read_text() if path.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    found = set(flags[1].split()) if flags else set()
    features = [feature for feature in FEATURES if feature in found]
    return f"{name[1] if name else 'processor'} ({', '.join(features) or 'features unknown'})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Returns ours / theirs of each pair."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def heading() -> str:
    """Returns the heading of the table."""
    return (
        f"{'case':18} {'processes x threads':>19} {'batch':>5} {'ours':>9} {'theirs':>9} "
        f"{'ours / theirs':>13}"
    )


def line(row: Mapping[str, Any]) -> str:
    """Returns a row as a line: median examples a second, median and extremes of the ratios."""
    ours, theirs = (statistics.median(row["speeds"][name]) for name in ("ours", "theirs"))
    found = row["ratios"]
    return (
        f"{row['case']:18} {row['processes']:>15} x {row['threads']} {row['batch']:5} "
        f"{ours:9.2f} {theirs:9.2f} {statistics.median(found):13.3f} "
        f"[{min(found):.3f} to {max(found):.3f}]"
    )


def settings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns notes on what was measured: versions, and the settings of each side."""
    lines = [f"examples a second, medians of {len(rows[0]['ratios'])} pairs of turns"]
    for row in rows:
        each = (f"{side['version']} ({side['settings']})" for side in row["sides"].values())
        lines.append(f"{row['case']}, {row['processes']} x {row['threads']}: {' / '.join(each)}")
    return lines
