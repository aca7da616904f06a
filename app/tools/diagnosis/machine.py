"""Cores, memory and disk against what the processes on this machine need."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import psutil

from app.tools.diagnosis.finding import Finding, ok, problem, warning

GB = 10**9
PROCESS = 0.5 * GB  # TensorFlow and Horovod, before any model, batch or data set
LITTLE = 1 * GB  # a checkpoint of ResNet-50 with an optimizer's slots and averages: 0.3 GB
ROOMY = 5 * GB
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def cores(np: int, has: int | None = None) -> Finding:
    """Whether each of `np` processes has a core of its own.

    Args:
        has: cores that this process may use, if not those of this machine.
    """
    has = has or len(os.sched_getaffinity(0))
    told = f"{has} for {np} process{'es' * (np > 1)} here"
    if np > has:
        return warning(
            "cores", f"{told}: they take turns, and each waits for the slowest", f"set NP={has}"
        )
    return ok("cores", f"{told}, {has // np} thread{'s' * (has // np > 1)} each")


def memory(np: int, available: float | None = None) -> Finding:
    """Whether the processes start, and whether something is left for what they compute."""
    available = available_memory() if available is None else available
    told = (
        f"{available / GB:.1f} GB available, {np * PROCESS / GB:.1f} GB taken by {np} "
        f"process{'es' * (np > 1)} before any model"
    )
    fewer = "end other programs, or use a machine with more"
    if np > 1:
        fewer = f"set NP={min(np - 1, max(1, math.floor(available / (2 * PROCESS))))}, {fewer}"
    if available < np * PROCESS:
        return problem("memory", told, fewer)
    if available < 2 * np * PROCESS:
        return warning("memory", f"{told}: little is left for it", fewer)
    return ok("memory", told)


def available_memory() -> float:
    """In bytes: what is free or can be freed, and not more than this container may have."""
    limits = [Path(path) for path in LIMITS]
    texts = [path.read_text().strip() for path in limits if path.exists()]
    most = [float(text) for text in texts if text.isdecimal()]
    return min([psutil.virtual_memory().available, *most])


def disk(subject: str, flag: str, place: Path) -> Finding:
    """Whether there is room where `place` is, or will be."""
    try:
        free = shutil.disk_usage(existing(place)).free
    except OSError as error:
        told = f"{place} cannot be looked at: {error.strerror}"
        return problem(subject, told, f"give another {flag}")
    told = f"{free / GB:.1f} GB free at {place}"
    fix = f"make room there, or give another {flag}"
    if free < LITTLE:
        return problem(subject, f"{told}, less than {LITTLE / GB:.0f} GB", fix)
    if free < ROOMY:
        return warning(subject, f"{told}, less than {ROOMY / GB:.0f} GB", fix)
    return ok(subject, told)


def existing(path: Path) -> Path:
    """The path, or the nearest above it that is there."""
    path = path.absolute()
    while not os.path.lexists(path):
        path = path.parent
    return path
