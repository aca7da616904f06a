"""Without a home, or with one that cannot be written, everything is kept in the project."""

import os
import subprocess
import sys

import pytest
from ranks import ROOT, start

from app.cli import home

pytestmark = pytest.mark.fast
FIND = """
set -euo pipefail
here=$1
fail() { echo "error: $1" >&2; exit 2; }
eval "$(sed -n '/^find_cache() {/,/^is_writable/p' "$2/run.sh")"
find_cache
echo "$cache $log"
"""


def cache(here, *unset, **variables):
    command = ["env", *(f"-u{name}" for name in unset), "bash", "-c", FIND, "bash", here, ROOT]
    return start(list(map(str, command)), here, **{n: str(v) for n, v in variables.items()})


def test_set_up_keeps_things_in_the_home_or_where_it_is_said(tmp_path):
    for variables in ({"HOME": tmp_path}, {"XDG_CACHE_HOME": tmp_path / ".cache", "HOME": "/proc"}):
        unset = () if len(variables) == 2 else ("XDG_CACHE_HOME",)
        done = cache(tmp_path, *unset, **variables)
        assert done.stdout.split() == [
            f"{tmp_path}/.cache/scaleproof", f"{tmp_path}/.cache/scaleproof/setup.log"
        ], done.stderr  # fmt: skip


def no_homes(folder):
    (folder / "file").write_text("")
    return [folder / "file" / "home", folder / "nowhere", "/proc"]


def test_set_up_without_a_home_to_write_to(tmp_path):
    for place in no_homes(tmp_path):
        done = cache(tmp_path, "XDG_CACHE_HOME", HOME=place)
        assert done.stdout.startswith(f"{tmp_path}/.cache/scaleproof "), done.stderr
    assert not (tmp_path / "nowhere").exists()
    done = cache("/proc", "XDG_CACHE_HOME", HOME="/proc")
    assert done.returncode == 2 and "set XDG_CACHE_HOME to one" in done.stderr
    assert cache(tmp_path, "XDG_CACHE_HOME", "HOME").returncode == 0  # the user's own, if any


def test_data_are_prepared_in_the_home_or_in_the_project(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home.data_dir() == "~/tensorflow_datasets"
    for place in no_homes(tmp_path)[:2]:
        monkeypatch.setenv("HOME", str(place))
        assert home.data_dir() == str(ROOT / "tensorflow_datasets")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a container's user is in no list
    assert home.data_dir() == str(ROOT / "tensorflow_datasets")


def test_data_that_are_there_are_taken_from_a_home_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert home.data_dir() == str(ROOT / "tensorflow_datasets")
    (tmp_path / "tensorflow_datasets").mkdir()
    assert home.data_dir() == "~/tensorflow_datasets"


def test_data_are_where_tensorflow_datasets_has_them(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/data")
    assert home.data_dir() == "/data"


def test_a_command_without_a_home(tmp_path):
    command = [sys.executable, "-m", "app", "list"]
    for variables in (["-uHOME"], ["HOME=/proc"]):
        done = start(["env", *variables, *command], tmp_path)
        assert done.returncode == 0 and "resnet50_digits" in done.stdout and not done.stderr
    done = start([*command[:-1], "prepare", "--data_dir=/proc/data"], tmp_path)
    assert done.returncode == 3 and done.stderr.endswith("or give another --data_dir.\n"), done
    assert "another format" not in done.stderr
    assert subprocess.run(["bash", "-n", str(ROOT / "run.sh")]).returncode == 0
