"""Another TensorFlow is tested in a copy, and what breaks is reported; pip and stages are real."""

import pytest
from wheels import only_from, wheel

from app import errors
from app.tools import upgrade

PYPROJECT = """\
[project]
name = "copied"
version = "1"
dependencies = ["tensorflow", "reader"]
[project.optional-dependencies]
build = []
test = []
"""
CONSTRAINTS = "# Tried.\nhorovod==0.28.1\nnumpy==1.0\nreader==1.0\ntensorflow==1.0\n"
RUN = """\
#!/bin/bash
echo "$@" >>calls
case $1 in
  setup) [ ! -e fail ] || { echo "error: 01-x.patch does not fit the source."; exit 1; } ;;
  test) [ "$2" != -m ] || { echo "FAILED tests/test_step.py::test_one - assert 1 == 2"; exit 1; } ;;
esac
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project whose packages pip finds in a folder."""
    root, links = tmp_path / "project", tmp_path / "links"
    for folder in (root / ".venv/bin", root / "runs/old", root / "app", links):
        folder.mkdir(parents=True)
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "constraints.txt").write_text(CONSTRAINTS)
    (root / "app/code.py").touch()
    (root / "run.sh").write_text(RUN)
    (root / "run.sh").chmod(0o755)
    monkeypatch.setattr(upgrade, "ROOT", root)
    only_from(links, monkeypatch)
    for version in ("1.0", "2.0"):
        wheel(links, "numpy", version)
    for version in ("1.0", "1.5"):
        wheel(links, "reader", version)
    wheel(links, "tensorflow", "2.22.0", "numpy>=2")
    return root


def test_all_stages_run_and_what_broke_is_reported(project, tmp_path, capfd):
    folder = tmp_path / "tried"
    assert upgrade.main("2.22.0", folder) == 1
    copy, printed = folder / "copy", capfd.readouterr().out
    assert (copy / "constraints.txt").read_text() == (
        "# Tried.\nhorovod==0.28.1\nnumpy==2.0\nreader==1.0\ntensorflow==2.22.0\n"
    ), "what does not belong to TensorFlow keeps its pin"
    assert "numpy 1.0 -> 2.0" in printed and "reader" not in printed
    assert "FAILED tests/test_step.py::test_one - assert 1 == 2" in printed
    assert printed.count("passed") == 4, printed
    assert (copy / "calls").read_text().splitlines() == [
        "setup", "test tests/parallel/test_collectives.py -rfE", "test -m fast -rfE", "test -rfE"
    ]  # fmt: skip
    assert {path.name for path in copy.iterdir()} == {
        "app", "calls", "constraints.txt", "pyproject.toml", "run.sh"
    }  # fmt: skip
    assert (project / "constraints.txt").read_text() == CONSTRAINTS
    with pytest.raises(errors.UsageError, match="is not empty: give --workdir"):
        upgrade.main("2.22.0", folder)


def test_a_set_up_that_fails_ends_it(project, tmp_path, capfd):
    (project / "fail").touch()
    assert upgrade.main("2.22.0", tmp_path / "tried") == 1
    assert "  error: 01-x.patch does not fit the source.\n" in capfd.readouterr().out
    assert (tmp_path / "tried/copy/calls").read_text() == "setup\n"


def test_pins_that_conflict_are_dropped(project, tmp_path, capfd):
    wheel(tmp_path / "links", "tensorflow", "3.0", "reader>=1.2")
    assert upgrade.resolve("3.0", project, tmp_path / "log") == []
    assert "reader==1.5" in (project / "constraints.txt").read_text()
    assert "reader 1.0 -> 1.5" in capfd.readouterr().out


def test_a_version_that_does_not_exist_is_reported(project, tmp_path):
    (line,) = upgrade.resolve("7.7", project, tmp_path / "log")
    assert line.startswith("ERROR: Could not find a version that satisfies the requirement")
    assert "tensorflow==7.7" in line
