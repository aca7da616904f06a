"""Implements `app upgrade`: tests this project on another TensorFlow, in a copy of it.

    resolve      pip chooses the packages: pins of constraints.txt are kept, except those of
                 TensorFlow's own family, or all are dropped if they conflict
    set up       ./run.sh setup in the copy: installs them, patches and compiles Horovod
    collectives  every operation of Horovod on 1 and 3 ranks, against NumPy
    fast tests   those that train nothing
    all tests    lint, types and the rest

The first two stages must succeed; all tests are run. The copy has an environment of its own, and is
kept: its constraints.txt is the one to adopt, its logs say what broke. See docs/upgrading.md.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from packaging.utils import canonicalize_name

from app import errors
from app.tools.diagnosis.installed import PIN

ROOT = Path(__file__).parents[2]
NOT_COPIED = (
    ".git", ".venv*", ".cache", ".*_cache", ".hypothesis", "__pycache__", "runs", "exports",
    "tensorflow_datasets",
)  # fmt: skip
# These follow TensorFlow's version; other pins are kept if they can be.
FAMILY = re.compile(
    r"tensorflow(-text|-metadata|-io-gcs-filesystem)?|tensorboard|keras|numpy|h5py|protobuf|"
    r"ml-dtypes|nvidia-.*"
)


def main(version: str, folder: Path) -> int:
    """Tests a version of TensorFlow, and prints what breaks; returns 0 if nothing does.

    Args:
        version: of TensorFlow.
        folder: new or empty, for the copy (about 4 GB with its environment).

    Raises:
        UsageError: the folder is not empty.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise errors.UsageError(f"{folder} is not empty: give --workdir a new one.")
    copy = folder / "copy"
    stages: list[tuple[str, bool, Callable[[Path], list[str]]]] = [
        ("resolve", True, lambda log: resolve(version, copy, log)),
        ("set up", True, lambda log: set_up(copy, log)),
        ("collectives", False, lambda log: test(copy, log, "tests/parallel/test_collectives.py")),
        ("fast tests", False, lambda log: test(copy, log, "-m", "fast")),
        ("all tests", False, lambda log: test(copy, log)),
    ]
    print(f"TensorFlow {version} in {copy}", flush=True)
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED), symlinks=True)
    is_broken = False
    for number, (name, is_needed, stage) in enumerate(stages, 1):
        log = folder / f"{number}-{name.replace(' ', '-')}.log"
        print(f"{name} ... ", end="", flush=True)
        start, broken = time.monotonic(), stage(log)
        state = f"{len(broken)} broken, see {log}" if broken else "passed"
        print(f"{time.monotonic() - start:.0f} s, {state}", *broken, sep="\n  ", flush=True)
        is_broken |= bool(broken)
        if broken and is_needed:
            break
    return int(is_broken)


def resolve(version: str, copy: Path, log: Path) -> list[str]:
    """Writes the copy's constraints.txt; returns what pip cannot resolve."""
    path = copy / "constraints.txt"
    text, comments = path.read_text(), path.read_text().partition("horovod==")[0]
    before: dict[str, str] = {canonicalize_name(name): pin for name, pin in PIN.findall(text)}
    others = {name: pin for name, pin in before.items() if not FAMILY.fullmatch(name)}
    for kept in (others, {}):
        path.write_text("".join(f"{name}=={pin}\n" for name, pin in kept.items()))
        log.unlink(missing_ok=True)
        report = log.with_suffix(".json")
        if not run(copy, log, sys.executable, "-m", "pip", "install", "--dry-run", "--quiet",
                   "--ignore-installed", "--report", str(report), "-c", str(path),
                   *requirements(copy, version)):  # fmt: skip
            break
    else:
        return errors_of(log)[:1]  # pip's first error says what, its last where to read
    found = json.loads(report.read_text())["install"]
    chosen = {f["metadata"]["name"]: f["metadata"]["version"] for f in found}
    path.write_text(
        comments + f"horovod=={before['horovod']}\n"
        + "".join(f"{n}=={v}\n" for n, v in sorted(chosen.items(), key=lambda c: c[0].lower()))
    )  # fmt: skip
    for name, new in sorted(chosen.items()):
        if (old := before.get(canonicalize_name(name))) != new:
            print(f"\n  {name} {old or 'none'} -> {new}", end="")
    print("\n  ", end="")
    return []


def requirements(copy: Path, version: str) -> list[str]:
    """Returns all that set-up installs except Horovod, with this version of TensorFlow."""
    project = tomllib.loads((copy / "pyproject.toml").read_text())["project"]
    extras: Mapping[str, list[str]] = project["optional-dependencies"]
    named = [*project["dependencies"], *extras["build"], *extras["test"]]
    return [f"tensorflow=={version}" if name == "tensorflow" else name for name in named]


def set_up(copy: Path, log: Path) -> list[str]:
    """Installs, patches and compiles in the copy; returns what failed."""
    return errors_of(log)[-1:] if run(copy, log, "./run.sh", "setup") else []


def test(copy: Path, log: Path, *arguments: str) -> list[str]:
    """Runs tests of the copy; returns those that failed, with pytest's reason."""
    code = run(copy, log, "./run.sh", "test", *arguments, "-rfE")
    lines = log.read_text(errors="replace").splitlines()
    failed = [line for line in lines if re.match(r"(FAILED|ERROR) ", line)]
    return (failed or errors_of(log)[-1:]) if code else []


def run(copy: Path, log: Path, *command: str) -> int:
    """Runs a command in the copy, with its output in the log; returns the exit code."""
    # The copy must not use the environment that runs this.
    hidden = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment.setdefault("PYTHON", getattr(sys, "_base_executable", sys.executable))
    with log.open("a") as output:
        return subprocess.run(
            command, cwd=copy, env=environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=output,
        ).returncode  # fmt: skip


def errors_of(log: Path) -> list[str]:
    """Returns the lines of a log that are marked as errors, or else the last one."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    marked = [line for line in lines if re.match(r"error:", line, re.IGNORECASE)]
    return marked or lines[-1:] or ["it ended without a message"]
