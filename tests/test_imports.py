"""Imports run one way."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import loading

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parent.parent
FILES = [p for folder in ("app", "models", "input") for p in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def users(*prefixes: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in FILES
        if any(n == p or n.startswith(f"{p}.") for n in imports(path) for p in prefixes)
    }


def test_horovod_is_used_in_one_file_and_launched_by_another():
    assert users("horovod.runner") == {
        "app/launch/horovodrun.py", "app/parallel/membership.py"
    }  # fmt: skip
    assert users("horovod") - users("horovod.runner") == {"app/parallel/replicas.py"}


def test_models_and_input_stand_alone():
    assert not any(f.startswith(("models/", "input/")) for f in users("app"))
    assert not any(f.startswith("input/") for f in users("models"))
    assert not any(f.startswith("models/") for f in users("input"))


def test_parallel_knows_no_training():
    assert not any(f.startswith("app/parallel/") for f in users("app.training", "models", "input"))


def test_the_trainer_knows_no_strategy():
    assert not any(f.startswith("app/training/") for f in users("app.strategies"))


def test_serving_needs_nothing_of_training():
    training = users("horovod", "models", "app.training", "app.parallel", "app.inference")
    assert not any(f.startswith("app/serving/") for f in training)


def test_integers_need_no_tensorflow():
    free = [
        "app/cli/flags.py",
        "app/cli/groups.py",
        "app/cli/rank.py",
        "app/cli/selection.py",
        "app/config.py",
        "app/experiments.py",
        "app/parallel/topology.py",
    ]
    free += [str(p.relative_to(ROOT)) for p in (ROOT / "app/commands").glob("*.py")]
    free += ["app/launch/launcher.py", "app/launch/horovodrun.py", "app/launch/tfrun.py"]
    free += ["app/parallel/cluster.py", "app/parallel/ledger.py", "app/tools/rules.py"]
    free += ["app/tools/compare.py", "app/parallel/straggler.py", "app/tools/comparison.py"]
    free += [str(p.relative_to(ROOT)) for p in (ROOT / "app/recovery").glob("*.py")]
    diagnosis = (ROOT / "app/tools/diagnosis").glob("*.py")
    free += ["app/tools/doctor.py"]
    free += [str(p.relative_to(ROOT)) for p in diagnosis if p.name != "rank.py"]
    free += ["app/parallel/tree.py", "app/parallel/schedule.py", "app/parallel/pipeline.py"]
    both = ("ours", "theirs", "torch_models")
    free += [
        f"app/tools/peers/{p.name}"
        for p in (ROOT / "app/tools/peers").glob("*.py")
        if p.stem not in both
    ]
    free += ["input/order.py", "input/images.py", "input/text.py", "input/items.py"]
    assert not set(free) & users("tensorflow", "keras")


def test_torch_is_of_the_other_side():
    assert users("torch") == {"app/tools/peers/theirs.py", "app/tools/peers/torch_models.py"}
    assert users("app.tools.peers.theirs", "app.tools.peers.torch_models") == {
        "app/tools/peers/theirs.py"
    }


def test_one_gradient_tape_and_one_of_shares():
    tapes = [str(p.relative_to(ROOT)) for p in FILES if "GradientTape(" in p.read_text()]
    assert tapes == ["app/training/differentiation.py", "models/shares.py"]


def test_what_is_hidden_can_be_imported_afterwards(monkeypatch):
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with loading.hidden("wave", "ast"):
        importlib.import_module("ast")  # was there before
        with pytest.raises(ImportError):
            importlib.import_module("wave")
    assert importlib.import_module("wave").open


def test_tensorflow_comes_alone():
    told = "from app.cli import loading; loading.tensorflow(); import keras, sys"
    told += "; assert not {'matplotlib', 'sklearn'} & set(sys.modules); import sklearn.base"
    subprocess.run([sys.executable, "-c", told], cwd=ROOT, check=True, timeout=240)


def test_autograph_is_off_where_it_has_nothing_to_convert():
    files = [p for p in FILES if {"training", "strategies"} & set(p.parts)]
    made = [line for p in files for line in p.read_text().splitlines() if "tf.function" in line]
    assert made and all("tf.function(" in line and "autograph=False" in line for line in made)
