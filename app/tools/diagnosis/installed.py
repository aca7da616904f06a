"""Compares installed versions with those that were tested, and examines Horovod's build.

Horovod is imported by another process, so that an import that crashes or hangs is a finding.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from app.launch import processes
from app.tools.diagnosis.finding import Finding, failure, ok, problem, warning

PIN = re.compile(r"(?m)^([\w.-]+)==([^\s#]+)")  # a line of a constraints file
CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"
PYTHONS = ((3, 11), (3, 12), (3, 13))
PACKAGES = (
    "horovod", "tensorflow", "tensorflow-text", "tensorboard", "keras", "numpy", "h5py", "protobuf",
    "tensorflow-datasets", "tensorflow-metadata",
)  # fmt: skip
REINSTALL = "rm -f .venv/.done && ./run.sh setup"
REBUILD = (
    "rebuild Horovod: rm -rf ~/.cache/scaleproof/horovod-* .venv/.done && ./run.sh setup (the "
    "wheels are in $XDG_CACHE_HOME/scaleproof if that is set)"
)
IMPORT_SECONDS = 180  # 3 on an idle machine, 40 were seen on a busy one
IMPORT = """
import json
import horovod.tensorflow as hvd
built = {"Gloo": hvd.gloo_built(), "MPI": hvd.mpi_built(), "NCCL": hvd.nccl_built()}
print(json.dumps({name: bool(is_built) for name, is_built in built.items()}))
"""


# What is incompatible with what, and why; of other versions of each, nothing is known.
INCOMPATIBLE = (
    ("horovod===0.28.1", "tensorflow>=2.19",
     "it runs there only with the patches of third_party/horovod, and was built without them"),
    ("protobuf<6.31.1", "tensorflow>=2.21", "TensorFlow 2.21 needs 6.31.1 or newer"),
    ("h5py>=3.15", "tensorflow>=2.21", "TensorFlow 2.21 needs one below 3.15"),
    ("tensorflow-text<2.21", "tensorflow>=2.21", "it is built for another version"),
    ("tensorflow-text>=2.22", "tensorflow<2.22", "it is built for another version"),
)  # fmt: skip


def pinned(path: Path = CONSTRAINTS) -> dict[str, str]:
    """Returns the pinned version by package; empty if there is no such file."""
    return dict(PIN.findall(path.read_text())) if path.exists() else {}


def installed() -> dict[str, str]:
    """Returns the version by package, of those that are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Examines whether this Python is one that was tested."""
    text = ".".join(map(str, version))
    if version[:2] in PYTHONS:
        return ok("python", text)
    return problem(
        "python",
        f"{text}, but TensorFlow 2.21 with Horovod 0.28.1 was tested only on 3.11, 3.12 and 3.13",
        "rm -rf .venv && PYTHON=/path/to/python3.11 ./run.sh setup",
    )


def versions(has: Mapping[str, str], wanted: Mapping[str, str]) -> Iterator[Finding]:
    """Compares what is installed with what is pinned, and finds incompatible packages."""
    if not wanted:
        yield warning(
            "versions",
            f"there is nothing to compare them with: {CONSTRAINTS} is missing or pins nothing",
            "run from a whole clone of scaleproof",
        )
    bad = {}
    for one, other, reason in INCOMPATIBLE:
        wrong, partner = Requirement(one), Requirement(other)
        if _holds(wrong, has) and _holds(partner, has):
            bad[wrong.name] = f"{partner.name} {has[partner.name]}: {reason}"
    right = []
    for package in PACKAGES:
        version, pin = has.get(package), wanted.get(package)
        if version is None:
            yield problem("versions", f"{package} is not installed", REINSTALL)
        elif package in bad:
            found = f"{package} {version} is incompatible with {bad[package]}"
            yield problem("versions", found, _install(package, pin))
        elif pin and Version(version).public != pin:
            found = f"{package} {version} was not tested, {pin} was (constraints.txt)"
            yield warning("versions", found, _install(package, pin))
        else:
            right.append(f"{package} {version}")
    if right:
        yield ok("versions", ", ".join(right))


def horovod(limit: float = IMPORT_SECONDS) -> Iterator[Finding]:
    """Examines whether Horovod can be imported, and what it was built with."""
    has, target = installed(), built_for()
    if target and has.get("tensorflow") not in (None, target):
        found = f"built for TensorFlow {target}, but {has['tensorflow']} is installed"
        yield problem("horovod", found, REBUILD)
    command = processes.bound([sys.executable, "-c", IMPORT])
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=limit,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        fix = f"see where it hangs: {sys.executable} -X faulthandler -c 'import horovod.tensorflow'"
        yield problem("horovod", f"its import takes longer than {limit:.0f} s", fix)
        return
    if done.returncode:
        yield problem("horovod", f"it cannot be imported: {failure(done)}", REBUILD)
        return
    built: dict[str, bool] = json.loads(done.stdout.splitlines()[-1])
    found = ", ".join(f"{name} {'yes' if is_built else 'no'}" for name, is_built in built.items())
    found = f"{found}; built for TensorFlow {target or '(unknown)'}"
    if not built["Gloo"]:
        yield problem("horovod", f"built without Gloo, which connects the ranks ({found})", REBUILD)
    elif not built["NCCL"] and has_gpus():
        fix = f"GPU=1 HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_HOME=... in front, {REBUILD}"
        yield warning("horovod", f"there are GPUs, but gradients pass through memory: {found}", fix)
    else:
        yield ok("horovod", found)


def built_for() -> str | None:
    """Returns the version of TensorFlow that Horovod was built for, as its build recorded."""
    try:
        path = importlib.metadata.distribution("horovod").locate_file("horovod/metadata.json")
        return str(json.loads(Path(str(path)).read_text())["tensorflow"])
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError, KeyError):
        return None


def has_gpus() -> bool:
    """Returns whether this process can see a GPU of NVIDIA."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not is_hidden and any(Path("/dev").glob("nvidia[0-9]*"))


def _holds(needed: Requirement, has: Mapping[str, str]) -> bool:
    version = has.get(needed.name)
    return version is not None and needed.specifier.contains(version, prereleases=True)


def _install(package: str, pin: str | None) -> str:
    if package == "horovod" or not pin:
        return REINSTALL
    return f"{sys.executable} -m pip install {package}=={pin}"
