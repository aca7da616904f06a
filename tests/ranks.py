"""Starts real horovodrun jobs: each with a time limit, and with no process left behind."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TINY = """
from app.config import Experiment, Optimization
from input.images import Images
from models.resnet import ResNet

def tiny():
    return Experiment(
        model=ResNet(depth=18, width=4),
        data=Images("synthetic", size=16, synthetic_examples=101, synthetic_classes=7,
                    augmentation="shift_flip", mixup=0.2),
        global_batch=32, micro_batch=4, steps=6,
        optimization=Optimization(warmup_epochs=0, label_smoothing=0.1, ema_decay=0.9),
    )
"""
SHALLOW = "from tests.shallow import Shallow\n" + TINY.replace(
    "ResNet(depth=18, width=4)", "Shallow()"
)
DENSE = """
from dataclasses import dataclass
from app.config import Experiment, Optimization
from input.images import Images

@dataclass(frozen=True)
class Small:
    def blocks(self, num_classes):
        import keras
        return [keras.layers.Flatten(name="flat"), keras.layers.Dense(num_classes, name="head")]

def dense():
    return Experiment(
        model=Small(), data=Images("synthetic", size=8, synthetic_examples=64, synthetic_classes=3),
        global_batch=8, micro_batch=4, steps=1500,
        optimization=Optimization(warmup_epochs=0, schedule="constant", learning_rate=0.01))
"""


def start(command: list[str], cwd: Path, limit: float = 480, **variables: str):
    """Runs a command in a session of its own; returns the completed process."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""} | variables
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=limit)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def app(np: int, cwd: Path, *arguments: str, limit: float = 480, **variables: str):
    """`python -m app ...` on np processes."""
    launch = ["launch"] if np > 1 else []
    command = ["python", "-m", "app", *launch, *arguments]
    return start(command, cwd, limit, NP=str(np), **variables)


def run_sh(np: int, cwd: Path, *arguments: str):
    """`NP=np ./run.sh ...`, as a user types it."""
    return start([str(ROOT / "run.sh"), *arguments], cwd, NP=str(np))
