"""Reads, writes and verifies a checkpoint's manifest, which names, measures and hashes its files.

    step-00000040/manifest.json   {"content": {...}, "sha256": of the content}
                                  content: format, step, metrics, weights_sha256, experiment,
                                  versions, and bytes and sha256 of each file

A checkpoint that does not agree with its manifest, or cannot be read, is damaged.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

FORMAT = 1
NAME = "manifest.json"
STEP = re.compile(r"step-(\d{8,})")  # the whole name, so that a user's copy is no checkpoint


class DamageError(Exception):
    """A checkpoint is not what was written; the message says what differs."""

    verb, prefix = "is damaged", "damaged"

    def __str__(self) -> str:
        return f"{self.verb}: {super().__str__()}"


class UnreadableError(DamageError):
    """A checkpoint could not be read now; it may be whole."""

    verb, prefix = "cannot be read", "unread"


ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # others may be temporary


def folder_of(checkpoints: Path, step: int) -> Path:
    """Returns the folder of a step's checkpoint."""
    return checkpoints / f"step-{step:08d}"


def damaged_path(folder: Path, damage: DamageError) -> Path:
    """Returns the folder to which a damaged checkpoint is moved; its name is no checkpoint's."""
    return folder.with_name(f"{damage.prefix}-{folder.name}")


def steps(checkpoints: Path) -> list[int]:
    """Returns the steps of all checkpoints that were completed, damaged since or not, oldest first.

    Raises:
        OSError: the folder cannot be listed.
    """
    try:
        found = map(STEP.fullmatch, os.listdir(checkpoints))
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for match in found if match)


def write(folder: Path, content: dict[str, Any]) -> None:
    """Writes the manifest of the files in `folder`, and waits until all is on the disk."""
    files = sorted(path for path in folder.iterdir() if path.name != NAME)
    measured = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files
    }
    content = {"format": FORMAT, **content, "files": measured}
    text = json.dumps({"content": content, "sha256": _digest(content)}, indent=1)
    (folder / NAME).write_text(text + "\n")
    for path in [*files, folder / NAME, folder]:
        sync(path)


def read(folder: Path) -> dict[str, Any]:
    """Reads a manifest and checks it against its own digest; returns its content.

    Raises:
        DamageError: it cannot be read (UnreadableError), or is not what was written.
    """
    try:
        manifest = json.loads((folder / NAME).read_text())
        content: dict[str, Any] = manifest["content"]
        is_whole = manifest["sha256"] == _digest(content)
    except (*ABSENT, ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{NAME} is no manifest ({getattr(error, 'strerror', error)})") from None
    except OSError as error:
        raise UnreadableError(f"{NAME}, {error.strerror}") from None
    if not is_whole:
        raise DamageError(f"{NAME} does not have its own checksum")
    if content["step"] != int(folder.name[5:]):
        raise DamageError(f"{NAME} is that of step {content['step']}")
    return content


def verify(folder: Path, content: dict[str, Any]) -> None:
    """Compares every file with the manifest.

    Raises:
        DamageError: a file is missing, cannot be read (UnreadableError), or has another size or
            checksum.
    """
    for name, wanted in content.get("files", {}).items():
        path = folder / name
        try:
            if not path.is_file():
                raise DamageError(f"{name} is missing")
            if path.stat().st_size != wanted["bytes"]:
                raise DamageError(f"{name} has {path.stat().st_size} bytes, not {wanted['bytes']}")
            if _sha256(path) != wanted["sha256"]:
                raise DamageError(f"{name} does not have its checksum")
        except OSError as error:
            raise UnreadableError(f"{name}, {error.strerror}") from None


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
