"""The folder of a run that nobody named."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ranks import SHALLOW, app, forked

from app.cli import workdir
from app.errors import UsageError


@pytest.fixture
def second(tmp_path, monkeypatch):
    """All that is begun is begun in one second, here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workdir, "named", lambda name: Path("runs", name, "2026-01-02-030405"))


@pytest.mark.fast
def test_jobs_of_one_second_have_a_folder_each(second):
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(workdir.default, ["mine"] * 100))
    assert len(set(found)) == 100 and all(folder.is_dir() for folder in found)
    names = {f"2026-01-02-030405{f'-{n}' if n > 1 else ''}" for n in range(1, 101)}
    assert {folder.name for folder in found} == names


@pytest.mark.fast
@pytest.mark.parametrize("name", ["runs", "runs/mine"])
def test_a_folder_that_cannot_be_made_is_one_error(second, name):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("a file")
    with pytest.raises(UsageError, match=r"cannot make runs/mine/2026.*--workdir"):
        workdir.default("mine")


@pytest.mark.ranks
def test_ranks_without_a_launcher_share_a_folder_and_a_failed_job_leaves_none(tmp_path):
    (tmp_path / "mine.py").write_text(SHALLOW)
    done = forked(2, tmp_path, "train", "--experiment=mine.py:tiny", "--set=steps=1")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs/tiny").iterdir()
    assert (folder / "result.json").exists()
    workdir.forget(folder)
    assert (folder / "result.json").exists()  # a run began there
    missing = ["--experiment=mine.py:tiny", "--set=data.dataset=./none"]
    done = app(1, tmp_path, "launch", "train", *missing)
    assert done.returncode == 3 and list((tmp_path / "runs/tiny").iterdir()) == [folder], (
        done.stderr
    )
