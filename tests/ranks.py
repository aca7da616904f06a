"""Starts jobs: each with a time limit, and with no process left behind.

`app` and `run_sh` start them as people do, which takes seconds of importing TensorFlow for every
rank: for tests of the launcher, of exit codes and of death. `forked` and `call` run them on ranks
that are forked where TensorFlow is imported (forks.py): for tests of what ranks compute.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks

from app.launch import tfrun
from app.parallel import cluster

ROOT = Path(__file__).parent.parent
TINY = """
from app.config import Experiment, Optimization
from app.objectives import Classification
from tests.pixels import Pixels
from models.resnet import ResNet

def tiny():
    return Experiment(
        model=ResNet(depth=18, width=4),
        data=Pixels(size=16, synthetic_examples=101, synthetic_classes=7,
                    augmentation="shift_flip", mixup=0.2),
        global_batch=32, micro_batch=4, steps=6,
        objective=Classification(label_smoothing=0.1),
        optimization=Optimization(warmup_epochs=0, ema_decay=0.9),
    )
"""
SHORT = "from tests.shallow import Short\n" + TINY.replace("ResNet(depth=18, width=4)", "Short()")
SHALLOW = "from tests.shallow import Shallow\n" + TINY.replace(
    "ResNet(depth=18, width=4)", "Shallow()"
)
SPLIT = "from tests.shallow import Split\n" + TINY.replace("ResNet(depth=18, width=4)", "Split()")
TEXTS = """
from app.config import Experiment, Optimization
from app.optimizers import AdamW
from input.text import Text
from models.transformer import Transformer

def tiny():
    return Experiment(
        model=Transformer(layers=2, width=16, heads=2, vocabulary=16, dropout=0.2),
        data=Text("./train.tsv", vocabulary=".", max_length=24, has_baseline=False),
        global_batch=32, micro_batch=4, steps=4,
        optimization=Optimization(optimizer=AdamW(), learning_rate=0.01, reference_batch=32,
                                  warmup_epochs=0, clip_norm=1.0, ema_decay=0.9),
    )
"""
DENSE = """
from app.config import Experiment, Optimization
from app.schedules import Constant
from tests.pixels import Pixels
from tests.shallow import Linear

def dense():
    return Experiment(
        model=Linear(),
        data=Pixels(size=8, synthetic_examples=64, synthetic_classes=3),
        global_batch=8, micro_batch=4, steps=1500,
        optimization=Optimization(schedule=Constant(), warmup_epochs=0, learning_rate=0.01))
"""


def environment(variables: dict[str, str]) -> dict[str, str]:
    """That of a process with these variables."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""} | variables
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    return env


def start(command: list[str], cwd: Path, limit: float = 480, **variables: str):
    """Runs a command in a session of its own; returns the completed process."""
    process = subprocess.Popen(
        command, cwd=cwd, env=environment(variables), text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=limit)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def succeeded(done: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    """Returns a process that is completed, unless it failed."""
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def app(np: int, cwd: Path, *arguments: str, limit: float = 480, **variables: str):
    """`python -m app ...` on np processes."""
    launch = ["launch"] if np > 1 else []
    command = ["python", "-m", "app", *launch, *arguments]
    return start(command, cwd, limit, NP=str(np), **variables)


def run_sh(np: int, cwd: Path, *arguments: str):
    """`NP=np ./run.sh ...`, as a user types it."""
    return start([str(ROOT / "run.sh"), *arguments], cwd, NP=str(np))


def forked(np: int, cwd: Path, *arguments: str, limit: float = 300, **variables: str):
    """What `python -m app ...` gives on np ranks that are forked, without a launcher.

    The exit code is the cause's: the lowest that a rank has, if not all are done.
    """
    env = environment(variables)
    found = forks.of_ranks(env).run(np, cwd, "app.__main__:main", [list(arguments)], env, limit)
    code = min((code for code in found.codes if code > 0), default=min(found.codes))
    return subprocess.CompletedProcess(arguments, code, "".join(found.out), "".join(found.err))


def call(np: int, cwd: Path, function: Callable, *arguments: Any, limit: float = 300, **variables):
    """Calls a module's function on np ranks that are forked; returns its values by rank.

    It joins the job itself, if it needs one: `setup.join(Layout())`.
    """
    env = environment(variables)
    target = f"{function.__module__}:{function.__name__}"
    found = forks.of_ranks(env).run(np, cwd, target, arguments, env, limit)
    assert not any(found.codes), f"exit codes {found.codes}\n" + "\n".join(found.err)
    return found.values


def served(workers: int, servers: int, cwd: Path, *arguments: str, limit: float = 300):
    """`forked` for a parameter-server job; what is returned is the chief's."""
    counts = {"chief": 1, "ps": servers, "worker": workers}
    ports = iter(tfrun.free_ports(sum(counts.values())))
    tasks = cluster.Cluster(
        {job: tuple(f"127.0.0.1:{next(ports)}" for _ in range(n)) for job, n in counts.items()}
    )
    environments = [tasks.environment(job, i) for job, n in counts.items() for i in range(n)]
    env = environment({cluster.PATIENCE: "60"})
    server = forks.of_ranks(env)
    command = (environments, list(arguments))
    found = server.run(len(environments), cwd, "ranks:task", command, env, limit, True)
    return subprocess.CompletedProcess(arguments, found.codes[0], found.out[0], found.err[0])


def on_servers(np: int, servers: int, cwd: Path, flags: list[str], *arguments: str):
    """`forked` for ranks whose stages are on stage servers with these flags; rank 0's."""
    ports = tfrun.free_ports(servers)
    env = environment({})
    command = (np, ports, flags, list(arguments))
    found = forks.of_ranks(env).run(np + servers, cwd, "ranks:staged", command, env, 300, True)
    return subprocess.CompletedProcess(arguments, found.codes[0], found.out[0], "".join(found.err))


def staged(np: int, ports: list[int], flags: list[str], arguments: list[str]) -> None:
    """One of a job's first np processes, which are its ranks; the others are its servers."""
    import app.__main__

    rank = int(os.environ["HOROVOD_RANK"])
    os.environ |= {"HOROVOD_SIZE": str(np), "HOROVOD_LOCAL_SIZE": str(np)}
    if rank >= np or np == 1:
        for name in [name for name in os.environ if name.startswith("HOROVOD_")]:
            del os.environ[name]
    if rank >= np:
        arguments = ["stage-server", f"--port={ports[rank - np]}", *flags]
    else:
        for port in ports:
            await_listener(port)
        arguments = [*arguments, "--servers=" + ",".join(f"127.0.0.1:{port}" for port in ports)]
    sys.exit(app.__main__.main(arguments))


def await_listener(port: int, limit: float = 120) -> None:
    """Returns once a process listens at a port of this machine."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port} after {limit} s")


def task(environments: list[dict[str, str]], arguments: list[str]) -> None:
    """One of a job that has no ranks."""
    import app.__main__

    own = environments[int(os.environ["HOROVOD_RANK"])]
    for name in [name for name in os.environ if name.startswith("HOROVOD_")]:
        del os.environ[name]
    os.environ.update(own)
    sys.exit(app.__main__.main(arguments))
