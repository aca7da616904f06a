"""Examines whether a workdir can be written, fsynced, renamed in and locked.

All is tried in a temporary folder. A workdir that does not exist yet is not made; the nearest
folder above it is tried.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

from app.errors import UsageError
from app.recovery import lock, manifest
from app.tools.diagnosis.finding import Finding, ok, problem, warning
from app.tools.diagnosis.machine import existing

SLOW = 1.0  # seconds until a few bytes are on the disk
OTHER = "give another --workdir, on a disk of this machine"


def workdir(path: Path) -> Finding:
    """Examines a workdir by doing what a run does there."""
    action = "make a folder"
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=existing(path)) as name:
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
