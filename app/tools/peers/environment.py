"""Makes the environment of the other side's packages, on demand and apart from the main one."""

import hashlib
import sys
import tomllib
from pathlib import Path

from app.errors import UsageError
from app.launch import processes

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / ".venv-peers"
CONSTRAINTS = ROOT / "constraints-peers.txt"


def python(log: Path, folder: Path = FOLDER) -> Path:
    """Returns the interpreter of an environment with the packages of extra `peers`; makes it once.

    Args:
        log: for the output of pip.
        folder: of the environment.

    Raises:
        UsageError: the environment cannot be made.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages: list[str] = project["optional-dependencies"]["peers"]
    wanted = hashlib.sha256(CONSTRAINTS.read_bytes() + sys.version.encode()).hexdigest()
    done, interpreter = folder / ".done", folder / "bin/python"
    if done.is_file() and done.read_text() == wanted:
        return interpreter
    print(f"installing {', '.join(packages)} into {folder}, once ...", flush=True)
    install = ["-m", "pip", "install", "--disable-pip-version-check", "-c", str(CONSTRAINTS)]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(interpreter), *install, *packages],
    ):
        if processes.run(command, log):
            raise UsageError(refusal(folder, log))
    done.write_text(wanted)
    return interpreter


def refusal(folder: Path, log: Path) -> str:
    """Returns why the environment cannot be made, and what to do."""
    errors = [line for line in log.read_text().splitlines() if line.startswith("ERROR")]
    reason = errors[0].removeprefix("ERROR: ").rstrip(".") if errors else "pip or venv failed"
    return (
        f"the packages of extra `peers` do not install into {folder} ({reason}; see {log}): let "
        "pip find them, in a registry (PIP_INDEX_URL) or a folder of wheels (PIP_FIND_LINKS; a "
        "build of PyTorch for CPUs is enough), and run the command again."
    )
