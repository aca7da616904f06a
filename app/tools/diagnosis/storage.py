"""Whether a workdir keeps what is written there: writing, waiting for the disk, renaming, locking.

All is tried in a folder of its own, which is removed again. A workdir that is not there yet is
not made: its place is tried.
"""

from __future__ import annotations

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
    """Does what a run does."""
    doing = "make a folder"
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=existing(path)) as name:
            folder = Path(name)
            doing = "write"
            partial, whole = folder / ".partial", folder / "whole"
            partial.write_bytes(b"scaleproof")
            doing = "fsync"
            begin = time.perf_counter()
            manifest.sync(partial)
            seconds = time.perf_counter() - begin
            doing = "rename"
            partial.replace(whole)
            manifest.sync(folder)
            doing = "read"
            if whole.read_bytes() != b"scaleproof" or partial.exists():
                return problem("workdir", f"{path} does not keep what is written there", OTHER)
            doing = "flock"
            if not _excludes(folder):
                told = f"{path} lets two jobs hold the same lock (flock)"
                return problem("workdir", f"{told}, and so write the same checkpoints", OTHER)
    except OSError as error:
        fix = f"make it writable, or {OTHER}" if doing in ("make a folder", "write") else OTHER
        return problem("workdir", f"cannot {doing} in {path}: {error.strerror or error}", fix)
    if seconds > SLOW:
        return warning("workdir", f"fsync takes {seconds:.1f} s in {path}", OTHER)
    return ok("workdir", f"{path} can be written, fsynced ({seconds * 1e3:.1f} ms), locked")


def _excludes(folder: Path) -> bool:
    with lock.held(folder):
        try:
            with lock.held(folder):
                return False
        except UsageError:
            return True
