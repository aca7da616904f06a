"""Starts ranks in milliseconds, by fork from a process that has imported what they need, no more.

    pytest worker --a line a job--> server: TensorFlow imported, nothing computed, one thread
                                      |-- rank 0   app.__main__.main(["train", ...])
                                      |-- rank 1
                                      '-- Horovod's rendezvous, on loopback

A job has processes of its own: threads, devices, Horovod, Keras and the first operation are as in
a job of the command line, nothing of one test is left for the next, and a rank may die. What it
does not show is the launcher, and importing.

Tests call `ranks.forked` for a command, `ranks.call` for a function on every rank.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from app.launch import private_network

ROOT = Path(__file__).parent.parent
# Variables that are read while TensorFlow is imported: for other values another server.
AT_IMPORT = ("TF_", "KERAS_", "CUDA_", "OMP_")
RANK = (
    "tensorflow", "app.__main__", "app.tools.verify", "app.tools.trace", "app.tools.benchmark",
    "app.training.trainer", "app.training.trained", "app.inference.predict",
    "app.launch.horovodrun", "tensorflow_text", "array_record.python.array_record_module",
    "app.commands.train", "app.strategies.pipelined", "input.images.image_set",
    "input.text.text_set", "models.resnet", "models.transformer", "tensorboard.summary",
)  # fmt: skip


class Ended(NamedTuple):
    """How a job ended; of each rank its exit code, what it wrote and what its function returned."""

    codes: list[int]
    out: list[str]
    err: list[str]
    values: list[Any]


class Forks:
    """A server of jobs whose processes have imported these modules; its first job starts it."""

    def __init__(self, modules: tuple[str, ...], variables: dict[str, str]) -> None:
        self.modules, self.variables = modules, variables
        self._server: subprocess.Popen | None = None
        atexit.register(self.close)

    def run(
        self, np: int, cwd: Path, target: str, arguments: Any, variables: dict[str, str],
        limit: float, ends_with_first: bool = False,
    ) -> Ended:  # fmt: skip
        """Calls `module:function` on np ranks, whose environment is `variables`.

        After `limit` seconds a rank writes its stacks, and is killed; with `ends_with_first` all
        others are, once the first has ended.
        """
        with tempfile.TemporaryDirectory(prefix="forks-") as name:
            folder = Path(name)
            (folder / "arguments").write_bytes(pickle.dumps(arguments))
            job = {"np": np, "cwd": str(cwd), "target": target, "folder": name, "limit": limit}
            job |= {"variables": variables, "ends_with_first": ends_with_first}
            codes = self._ask(job)
            out = [(folder / f"{rank}.out").read_text() for rank in range(np)]
            err = [(folder / f"{rank}.err").read_text() for rank in range(np)]
            found = [folder / f"{rank}.pickle" for rank in range(np)]
            values = [pickle.loads(p.read_bytes()) if p.exists() else None for p in found]
            return Ended(codes, out, err, values)

    def _ask(self, job: dict[str, Any]) -> list[int]:
        if self._server is None or self._server.poll() is not None:
            env = os.environ | {"PYTHONPATH": str(ROOT)} | self.variables
            env["OPENBLAS_NUM_THREADS"] = "1"  # NumPy would have threads as soon as it is there
            command = [sys.executable, str(ROOT / "tests/forkserver.py"), *self.modules]
            if (
                private_network.is_allowed()
            ):  # as jobs of the launcher: nobody outside reaches a port
                env[private_network.ADDRESSES] = "127.0.0.1"
                command = [*private_network.INSIDE, *command]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._server = subprocess.Popen(command, env=env, cwd=ROOT, text=True, **pipes)
        try:
            self._server.stdin.write(json.dumps(job) + "\n")
            self._server.stdin.flush()
            answer = self._server.stdout.readline()
            assert answer, f"the server of forks ended with exit code {self._server.wait(10)}"
            return json.loads(answer)
        except BaseException:  # a time limit too: it may be anywhere in the job
            self.close()
            raise

    def close(self) -> None:
        """Kills the server, and the ranks die with it."""
        if self._server:
            self._server.kill()
            self._server.communicate()
            self._server = None


@functools.cache
def server(modules: tuple[str, ...], variables: tuple[tuple[str, str], ...] = ()) -> Forks:
    """The one for these modules, imported with these variables."""
    return Forks(modules, dict(variables))


def of_ranks(variables: dict[str, str]) -> Forks:
    """The server for ranks with such an environment."""
    early = {name: value for name, value in variables.items() if name.startswith(AT_IMPORT)}
    return server(RANK, tuple(sorted(early.items())))
