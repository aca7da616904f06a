"""Imports run one way."""

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Collection
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


def import_lines(source: str, modules: Collection[str]) -> dict[str, int]:
    """Maps the modules that a source imports to lines; imports in functions and of types count."""
    lines: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from a import b` imports a.b if that is a module, and else a.
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else str(node.module) for name in full]
        for name in names:
            if name in modules:
                lines.setdefault(name, node.lineno)
    return lines


def cycles(sources: dict[str, str]) -> list[str]:
    """Returns the shortest cycle of imports through each module that is in one, with lines.

    Args:
        sources: by the modules' names.
    """
    graph = {name: import_lines(source, sources.keys()) for name, source in sources.items()}
    found = {}
    for first in graph:
        paths = [[first]]  # breadth first
        seen: set[str] = set()
        for path in paths:
            for other in graph[path[-1]]:
                if other == first:
                    pairs = zip(path, [*path[1:], first], strict=True)
                    steps = [f"{a} imports {b} (line {graph[a][b]})" for a, b in pairs]
                    found.setdefault(frozenset(path), ", ".join(steps))
                    seen = set(graph)
                elif other not in seen:
                    seen.add(other)
                    paths.append([*path, other])
    return list(found.values())


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


def test_models_and_input_import_neither_the_application_nor_each_other():
    assert not any(f.startswith(("models/", "input/")) for f in users("horovod"))
    assert not any(f.startswith(("models/", "input/")) for f in users("app"))
    assert not any(f.startswith("input/") for f in users("models"))
    assert not any(f.startswith("models/") for f in users("input"))


def test_imports_have_no_cycle():
    sources = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p.read_text()
        for p in FILES
    }
    found = cycles(sources)
    assert not found, (
        "modules import each other, if only in a function or for a type; move what both need to a "
        "module below them, or pass it as an argument:\n" + "\n".join(found)
    )


@pytest.mark.parametrize(
    "line",
    [
        "import app.a",
        "from app import a",
        "from app.a import name",
        "def f():\n    from app import other, a",
        "if TYPE_CHECKING:\n    from app.a import T",
    ],
)
def test_a_cycle_of_imports_is_found_and_named(line):
    sources = {"app": "", "app.a": "from app import b", "app.b": "import app.c", "app.c": line}
    (found,) = cycles(sources)
    assert (
        "app.a imports app.b (line 1), app.b imports app.c (line 1), app.c imports app.a" in found
    )


def test_every_package_is_installed():
    """A new folder is a new line of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in FILES if p.name == "__init__.py"}
    assert found == set(project["packages"])


def test_parallel_knows_no_training():
    assert not any(f.startswith("app/parallel/") for f in users("app.training", "models", "input"))


def reached(module: str, found: set[str] | None = None) -> set[str]:
    """Returns all modules of the project that a module imports, anywhere in it, directly or not."""
    found = set() if found is None else found
    path = ROOT / f"{module.replace('.', '/')}.py"
    if module not in found and path in FILES:
        found.add(module)
        for name in imports(path):
            reached(name, found)
    return found


@pytest.mark.parametrize("module", ["trainer", "trained"])
def test_training_reaches_no_other_room(module):
    """Not even by an import inside a function; strategies are imported by name."""
    rooms = {name.split(".")[1] for name in reached(f"app.training.{module}") if "app." in name}
    experiment = {"bounds", "config", "errors", "schedules"}
    assert rooms == {"cli", "parallel", "recovery", "reporting", "training", *experiment}


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
    free += ["input/__init__.py", "input/order.py", "input/items.py", "input/rows.py"]
    free += ["input/images/__init__.py", "input/text/__init__.py", "input/text/files.py"]
    assert not set(free) & users("tensorflow", "keras")


def test_torch_is_of_the_other_side():
    assert users("torch") == {"app/tools/peers/theirs.py", "app/tools/peers/torch_models.py"}
    assert users("app.tools.peers.theirs", "app.tools.peers.torch_models") == {
        "app/tools/peers/theirs.py"
    }


def test_one_gradient_tape_and_one_of_shards():
    tapes = [str(p.relative_to(ROOT)) for p in FILES if "GradientTape(" in p.read_text()]
    assert tapes == ["app/training/differentiation.py", "models/shards.py"]


def test_what_is_hidden_can_be_imported_afterwards(monkeypatch):
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with loading.hidden("wave", "ast"):
        importlib.import_module("ast")  # was there before
        with pytest.raises(ImportError):
            importlib.import_module("wave")
    assert importlib.import_module("wave").open


def test_tensorflow_comes_alone():
    code = "from app.cli import loading; loading.tensorflow(); import keras, sys"
    code += "; assert not {'matplotlib', 'sklearn'} & set(sys.modules); import sklearn.base"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=240)


def test_autograph_is_off_where_it_has_nothing_to_convert():
    files = [p for p in FILES if {"training", "strategies"} & set(p.relative_to(ROOT).parts)]
    made = [line for p in files for line in p.read_text().splitlines() if "tf.function" in line]
    assert made and all("tf.function(" in line and "autograph=False" in line for line in made)
