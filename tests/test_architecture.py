"""Rooms that are optional are optional."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_training_needs_no_strategy(tmp_path):
    """Data-parallel training runs in a copy of the tree without them."""
    for folder in ("app", "models", "input"):
        left_out = shutil.ignore_patterns("__pycache__", "strategies")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=left_out)
    assert not (tmp_path / "app/strategies").exists()
    model = ["--set", "model.depth=18", "--set", "model.width=4", "--set", "data.size=16"]
    command = [
        *(sys.executable, "-m", "app", "train", "--experiment=resnet50_synthetic", *model),
        *("--set", "global_batch=8", "--set", "micro_batch=4", "--set", "steps=2", "--workdir=run"),
    ]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300, env=without_python_path())
    assert json.loads((tmp_path / "run/result.json").read_text())["steps"] == 2


def without_python_path() -> dict[str, str]:
    """The environment without what would find this tree's modules instead of the copy's."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
