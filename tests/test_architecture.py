"""The rooms: a command is a file, and what is optional can be left out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app import __main__

ROOT = Path(__file__).parent.parent
OPTIONAL = ("serving", "inference", "strategies", "tools")


def copy(folder: Path, *left_out: str) -> Path:
    """Copies the tree but for files and folders of these names."""
    for name in ("app", "models", "input"):
        ignored = shutil.ignore_patterns("__pycache__", *left_out)
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m app` in a copy, which finds no module of this tree."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def test_training_needs_no_optional_room(tmp_path):
    folder = copy(tmp_path, *OPTIONAL)
    assert not any((folder / "app" / name).exists() for name in OPTIONAL)
    model = ["--set=model.depth=18", "--set=model.width=4", "--set=data.size=16"]
    batch = ["--set=global_batch=8", "--set=micro_batch=4", "--set=steps=2"]
    run = ["--experiment=resnet50_synthetic", *model, *batch, "--workdir=run"]
    done = call(folder, "train", *run)
    assert not done.returncode, done.stderr
    assert json.loads((folder / "run/result.json").read_text())["steps"] == 2


@pytest.mark.fast
@pytest.mark.parametrize("name", __main__.names())
def test_a_command_is_imported_by_itself(name):
    """Its help too: without TensorFlow, and without any other command."""
    code = "import sys, app.__main__ as m; m.main(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", code, *name.split(), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{name}: ")
    modules = done.stdout.split("\n")[-2].split()
    commands = [module for module in modules if module.startswith("app.commands.")]
    assert commands == [f"app.commands.{__main__.names()[name].stem}"]
    assert "tensorflow" not in modules


@pytest.mark.fast
def test_a_command_that_is_deleted_is_gone_and_no_other(tmp_path):
    folder = copy(tmp_path)
    kept = folder / "app/commands/list.py"
    for path in (folder / "app/commands").glob("[!_]*.py"):
        if path != kept:
            path.unlink()
    assert "resnet50_digits" in call(folder, "list").stdout
    listed = call(folder, "help").stdout
    assert "Lists the experiments." in listed and "\nTrain\n" not in listed
    done = call(folder, "train")
    assert done.returncode == 2 and "no command 'train': use one of list." in done.stderr


@pytest.mark.fast
def test_help_lists_every_command_and_its_flags():
    listed = call(ROOT, "help").stdout
    assert all(f"\n  {name} " in listed for name in __main__.names())
    flags = call(ROOT, "launch", "train", "--help").stdout
    assert "\nThe layout:\n" in flags and "--stages: The number of stages" in flags
    assert "(default: '1')\n    (an integer)" in flags and "--max_batch" not in flags
