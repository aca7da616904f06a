"""Examines whether cores, memory and disk suffice, and whether a workdir can be used."""

import contextlib
import math
import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil

from app.cli import workdir as workdirs
from app.errors import UsageError
from app.recovery import lock, manifest
from app.tools.diagnosis.finding import Finding, ok, problem, warning

GB = 10**9
PROCESS = 0.5 * GB  # TensorFlow and Horovod, before any model, batch or data set
TOO_LITTLE = 1 * GB  # a checkpoint of ResNet-50 with an optimizer's slots and averages: 0.3 GB
LITTLE = 5 * GB
SLOW = 1.0  # seconds until a few bytes are on the disk
OTHER = "give another --workdir, on a disk of this machine"
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def cores(np: int, has: int | None = None) -> Finding:
    """Examines whether each process has a core of its own.

    Args:
        np: number of processes.
        has: number of cores; by default those that this process may use.
    """
    has = has or len(os.sched_getaffinity(0))
    found = f"{has} for {np} process{'es' * (np > 1)} on this machine"
    if np > has:
        return warning(
            "cores", f"{found}: they take turns, and each waits for the slowest", f"set NP={has}"
        )
    return ok("cores", f"{found}, {has // np} thread{'s' * (has // np > 1)} each")


def memory(np: int, available: float | None = None) -> Finding:
    """Examines whether the processes can start, and have memory left to compute."""
    available = available_memory() if available is None else available
    found = (
        f"{available / GB:.1f} GB available, {np * PROCESS / GB:.1f} GB taken by {np} "
        f"process{'es' * (np > 1)} before any model"
    )
    fewer = "end other programs, or use a machine with more"
    if np > 1:
        fewer = f"set NP={min(np - 1, max(1, math.floor(available / (2 * PROCESS))))}, {fewer}"
    if available < np * PROCESS:
        return problem("memory", found, fewer)
    if available < 2 * np * PROCESS:
        return warning("memory", f"{found}: little is left for it", fewer)
    return ok("memory", found)


def available_memory() -> float:
    """Returns the bytes that are free or can be freed, within the limits of this container."""
    limits = [Path(path) for path in LIMITS]
    texts = [path.read_text().strip() for path in limits if path.exists()]
    most = [float(text) for text in texts if text.isdecimal()]
    return min([psutil.virtual_memory().available, *most])


def disk(subject: str, flag: str, path: Path) -> Finding:
    """Examines whether there is room where `path` is, or will be."""
    try:
        free = shutil.disk_usage(workdirs.existing(path)).free
    except OSError as error:
        found = f"cannot examine {path}: {error.strerror}"
        return problem(subject, found, f"give another {flag}")
    found = f"{free / GB:.1f} GB free at {path}"
    fix = f"make room there, or give another {flag}"
    if free < TOO_LITTLE:
        return problem(subject, f"{found}, less than {TOO_LITTLE / GB:.0f} GB", fix)
    if free < LITTLE:
        return warning(subject, f"{found}, less than {LITTLE / GB:.0f} GB", fix)
    return ok(subject, found)


def workdir(path: Path) -> Finding:
    """Examines a workdir by doing what a run does there: write, fsync, rename and lock.

    All is tried in a temporary folder. A workdir that does not exist yet is not made; the nearest
    folder above it is tried.
    """
    action = "make a folder"
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=workdirs.existing(path)) as name:
            folder = Path(name)
            action = "write"
            partial, whole = folder / ".partial", folder / "whole"
            partial.write_bytes(b"scaleproof")
            action = "fsync"
            begin = time.perf_counter()
            manifest.sync(partial)
            seconds = time.perf_counter() - begin
            action = "rename"
            partial.replace(whole)
            manifest.sync(folder)
            action = "read"
            if whole.read_bytes() != b"scaleproof" or partial.exists():
                return problem("workdir", f"{path} does not keep what is written there", OTHER)
            action = "flock"
            if not _excludes(folder):
                found = f"{path} lets two jobs hold the same lock (flock)"
                return problem("workdir", f"{found}, and so write the same checkpoints", OTHER)
    except OSError as error:
        fix = f"make it writable, or {OTHER}" if action in ("make a folder", "write") else OTHER
        return problem("workdir", f"cannot {action} in {path}: {error.strerror or error}", fix)
    if seconds > SLOW:
        return warning("workdir", f"fsync takes {seconds:.1f} s in {path}", OTHER)
    return ok("workdir", f"{path} can be written, fsynced ({seconds * 1e3:.1f} ms), locked")


def _excludes(folder: Path) -> bool:
    """Returns whether the lock of a folder cannot be taken twice."""
    with lock.held(folder), contextlib.suppress(UsageError), lock.held(folder):
        return False
    return True
