"""Builds Horovod's wheel: its source by name and hash, the patches beside this file, a compiler.

    python third_party/horovod/build.py CACHE

The wheel is kept in CACHE under a key of all that it depends on: this Python's minor version, the
TensorFlow that is installed, the build variables, the patches and this file. A machine that has
it compiles nothing. Standard output is the wheel's path; what goes on is on standard error.

HOROVOD_SOURCE=/path/horovod-0.28.1.tar.gz takes the source package from there: for a machine
without a network. HOROVOD_... variables that Horovod documents (GPU operations, NCCL, MPI) pass
through.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

import patch_ng
import psutil

VERSION = "0.28.1"  # the last release
SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
PATCHES = Path(__file__).parent
BUILT_IN = {
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITH_GLOO": "1",
}
KEYED = re.compile(r"(GPU|CC|CXX|CXXFLAGS|HOROVOD_(WITH|WITHOUT|GPU|CPU|NCCL|CUDA|ROCM|BUILD)\w*)$")
BYTES_PER_COMPILER = 1_500_000_000  # 1.3 GB were seen, at mpi_ops.cc

# What a build's output says when it fails, and what that means; the first that is found is given.
CAUSES = (
    (r"fatal error: Killed signal|virtual memory exhausted|cannot allocate memory",
     "the compiler ran out of memory: free some, or compile one file at a time with MAKEFLAGS=-j1"),
    (r"No space left on device", "the disk is full"),
    (r"(fatal error: .*: No such file or directory)", None),
    (r"(CMake Error.*)", None),
    (r"(\S*: error: .*)", None),
    (r"(undefined reference to .*|ld returned .*)", None),
    (r"(\w*Error: .*)", None),
)  # fmt: skip


class BuildError(Exception):
    """Horovod cannot be built; one sentence."""


def main(cache: Path) -> Path:
    """The wheel, from the cache or built now.

    Raises:
        BuildError: the source is not the one that the patches are for, a patch does not fit, or
            the compiler failed.
    """
    folder = cache / f"horovod-{key()}"
    kept = list(folder.glob("horovod-*.whl"))
    if kept:
        return kept[0]
    with tempfile.TemporaryDirectory(prefix="horovod-", dir=cache) as scratch:
        source = unpack(fetch(Path(scratch)), Path(scratch))
        for patch in patches():
            apply(patch, source)
        wheel = compile_wheel(source, Path(scratch))
        folder.mkdir(exist_ok=True)
        return wheel.rename(folder / wheel.name)


def key() -> str:
    """What the wheel depends on, in 12 digits."""
    parts = [
        platform.python_implementation(),
        *map(str, sys.version_info[:2]),
        platform.machine(),
        importlib.metadata.version("tensorflow"),
        SHA256,
        *(f"{name}={value}" for name, value in sorted(os.environ.items()) if KEYED.match(name)),
        *(hashlib.sha256(path.read_bytes()).hexdigest() for path in (*patches(), Path(__file__))),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def local_version() -> str:
    """What follows the + in the wheel's version: that it is patched, and with what."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in patches()))
    return f"patched.{digest.hexdigest()[:8]}"


def patches() -> list[Path]:
    """In the order in which they are applied."""
    return sorted(PATCHES.glob("*.patch"))


def fetch(folder: Path) -> Path:
    """The source package, by name from pip's registry or from HOROVOD_SOURCE."""
    given = os.environ.get("HOROVOD_SOURCE")
    if not given:
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        pip += ["--no-binary", ":all:", "--no-build-isolation", f"horovod=={VERSION}"]
        run([*pip, "-d", str(folder)], "the source package cannot be fetched")
    package = Path(given or folder / f"horovod-{VERSION}.tar.gz")
    if not package.is_file():
        raise BuildError(f"there is no source package {package}")
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != SHA256:
        raise BuildError(
            f"the patches are for the source package of Horovod {VERSION} with SHA-256 {SHA256}, "
            f"but {package} has {found}: it is another version or was altered"
        )
    return package


def unpack(package: Path, folder: Path) -> Path:
    """The source, unpacked; its folder."""
    with tarfile.open(package) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"horovod-{VERSION}"


def apply(patch: Path, source: Path) -> None:
    """Changes the source as the patch says, or not at all."""
    print(f"patch {patch.name}", file=sys.stderr, flush=True)
    parsed = patch_ng.fromfile(str(patch))
    if not parsed or not parsed.apply(strip=1, root=str(source), fuzz=False):
        raise BuildError(f"{patch.name} does not fit the source of Horovod {VERSION}")


def compile_wheel(source: Path, folder: Path) -> Path:
    """Compiles; the wheel, in `folder`."""
    environment = {**BUILT_IN, "HOROVOD_LOCAL_VERSION": local_version(), **os.environ}
    if "HOROVOD_WITH_MPI" not in environment:
        environment.setdefault("HOROVOD_WITHOUT_MPI", "1")
    environment.setdefault("CMAKE_GENERATOR", "Ninja")
    environment.setdefault("MAKEFLAGS", f"-j{compilers()}")
    environment["CMAKE_BUILD_PARALLEL_LEVEL"] = environment["MAKEFLAGS"].partition("-j")[2] or "1"
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    pip = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--verbose"]
    pip += ["--no-build-isolation", "--no-deps", "-w", str(folder), str(source)]
    run(pip, f"Horovod {VERSION} does not compile", environment)
    return next(folder.glob("horovod-*.whl"))


def compilers() -> int:
    """How many compilers fit into cores and memory."""
    free: int = psutil.virtual_memory().available
    return max(1, min(len(os.sched_getaffinity(0)), free // BYTES_PER_COMPILER))


def run(command: list[str], failure: str, environment: dict[str, str] | None = None) -> None:
    """Runs a command, shows what it prints, and says the cause in one sentence if it fails."""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    lines = []
    assert process.stdout
    for line in process.stdout:
        print(line, end="", file=sys.stderr, flush=True)
        lines.append(line.strip())
    if process.wait():
        raise BuildError(f"{failure}: {cause(lines)}")


def cause(lines: Iterable[str]) -> str:
    """The first line that says why, or what it means."""
    text = "\n".join(lines)
    for pattern, meaning in CAUSES:
        if found := re.search(pattern, text):
            return meaning or found[1]
    return text.rpartition("\n")[2]


if __name__ == "__main__":
    try:
        print(main(Path(sys.argv[1])))
    except BuildError as error:
        sys.exit(f"error: {error}.")
