"""Names, claims and checks the folder of a run, which belongs to one experiment."""

import contextlib
import datetime
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

from app.config import Experiment, Layout, as_dict, differences, plain, recorded
from app.errors import UsageError
from app.recovery import atomic_file

SHAPE = {"reference": str, "set": list, "experiment": dict, "layout": dict}  # of config.json


def named(reference: str) -> Path:
    """Returns runs/<experiment>/<time>, which another job may have taken."""
    name = reference.rpartition(":")[2]
    return Path("runs") / name / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")


def default(reference: str) -> Path:
    """Makes a folder that no other job has: as `named`, or with -2, -3 ... at its end.

    Raises:
        UsageError: it cannot be made.
    """
    first = named(reference)
    try:
        for number in itertools.count(1):
            folder = first.with_name(f"{first.name}-{number}") if number > 1 else first
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)  # by one process only
                break
    except OSError as error:
        raise UsageError(
            f"cannot make {first} ({error.strerror}): name another, by --workdir or --output."
        ) from None
    return folder


def forget(folder: Path) -> None:
    """Removes what `default` made if no run began in it: it holds at most the supervisor's log."""
    with contextlib.suppress(OSError):
        if set(os.listdir(folder)) <= {"recovery.jsonl"}:
            shutil.rmtree(folder)
            folder.parent.rmdir()  # if it is empty now, as all that follow
            folder.parent.parent.rmdir()


def read(workdir: Path) -> dict[str, Any] | None:
    """Reads the config.json of a run; returns None for a folder that is no run yet."""
    path = workdir / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(
            f"cannot read {path} ({error.strerror}): give another --workdir."
        ) from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}): give another --workdir.") from None
    has_shape = isinstance(config, dict) and all(
        isinstance(config.get(name), kind) for name, kind in SHAPE.items()
    )
    if not has_shape or "exact" not in config["layout"]:
        raise UsageError(f"{path} is not of a run of scaleproof: give another --workdir.")
    return config


def writable(folder: Path, flag: str = "--workdir") -> None:
    """Checks that a folder can be made and written, without making it.

    Raises:
        UsageError: says what is in the way.
    """
    nearest = existing(folder)
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return
    reason = "may not be written" if nearest.is_dir() else "is no folder"
    raise UsageError(f"cannot write to {folder}: {nearest} {reason}; give another {flag}.")


def existing(path: Path) -> Path:
    """Returns the path, or the nearest folder above it that exists."""
    return next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))


def check(workdir: Path, experiment: Experiment, layout: Layout) -> None:
    """Checks that a run is continued with its own experiment, and as exactly as it was begun.

    Raises:
        UsageError: shows every field that differs.
    """
    config = read(workdir)
    if config is None:
        return
    ours = plain(as_dict(experiment))
    lines = differences(ours, recorded(config["experiment"]))
    if layout.exact != config["layout"]["exact"]:
        lines.append(f"--exact: {layout.exact} here, {config['layout']['exact']} there")
    if lines:
        raise UsageError(
            f"{workdir} holds a run of another experiment: {'; '.join(lines)}. Give these fields "
            "the same values, or another --workdir."
        )


def settle(path: Path, ours: dict[str, Any], what: str, flag: str) -> None:
    """Records what a folder is for in a file, or checks that it was begun for the same.

    Args:
        path: of the file.
        ours: what it is for.
        what: the folder holds, for the message.
        flag: that names the folder.

    Raises:
        UsageError: it was begun for something else; shows every value that differs.
    """
    ours = plain(ours)
    lines = differences(ours, json.loads(path.read_text()) if path.exists() else ours)
    if lines:
        raise UsageError(
            f"{path.parent} holds {what}: {'; '.join(lines)}. Give the same values, or another "
            f"{flag}."
        )
    atomic_file.write_text(path, json.dumps(ours, indent=1) + "\n")


def claim(
    workdir: Path, reference: str, settings: list[str], experiment: Experiment,
    layout: dict[str, Any], about: dict[str, Any],
) -> None:  # fmt: skip
    """Writes config.json: everything that is needed to repeat the run.

    Args:
        workdir: of the run.
        reference: of the experiment.
        settings: what --set said.
        experiment: as it came out.
        layout: of the job.
        about: versions, kernels, and what the data mean.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    config = {
        "reference": reference,
        "set": settings,
        "experiment": as_dict(experiment),
        "layout": layout,
        **about,
    }
    atomic_file.write_text(workdir / "config.json", json.dumps(config, indent=1) + "\n")
