"""A checkpoint is the state after some step, or it is none, whatever happens in a write."""

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from pixels import Pixels
from ranks import ROOT, SHALLOW

from app import config
from app.cli.overrides import override
from app.config import Layout
from app.errors import CheckpointError, NumbersError
from app.recovery import manifest
from app.training import checkpoint, trained
from app.training.checkpoint import Checkpoints
from app.training.state import State
from app.training.step import SingleStageStep
from input.images import Images

pytestmark = pytest.mark.faults

SPEC = tf.TensorSpec([None, 16, 16, 3])


@pytest.fixture
def state(tiny):
    return State(tiny, SPEC, 7)


@pytest.fixture
def checkpoints(tiny, state, tmp_path, joined):
    about = {"experiment": config.as_dict(tiny), "versions": {}}
    return Checkpoints(tmp_path / "checkpoints", state, joined, keep=3, about=about)


def move(state):
    """Another state; returns its digest."""
    for variable in state.trainable:
        variable.assign_add(tf.ones_like(variable))
    return state.sha256()


def written(checkpoints, step):
    """Saves, and waits; returns the digest."""
    digest = move(checkpoints.state)
    checkpoints.save(step, {})
    error = checkpoints.wait()
    if error:
        raise error
    return digest


class Killed(BaseException):
    """As SIGKILL, it runs no clean-up of ours."""


# What a write is made of, in its order; each may be the last that happens.
OPERATIONS = [
    (Path, "mkdir"), (Path, "rename"), (Path, "write_text"), (shutil, "rmtree"), (os, "fsync"),
    (manifest, "_sha256"), (checkpoint, "_write_bundle"), (checkpoint, "sha256_of"),
]  # fmt: skip


def killed_at(monkeypatch, moment, is_after):
    """Dies at the `moment`-th of the operations; returns a counter of all."""
    count = [0]

    def dying(operation):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == moment and not is_after:
                raise Killed
            result = operation(*args, **kwargs)
            if count[0] == moment:
                raise Killed
            return result

        return call

    for owner, name in OPERATIONS:
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    return count


def test_killed_at_any_point_of_a_write_the_state_is_one_of_two(checkpoints, monkeypatch):
    """Also over a checkpoint of the same step, which is what a damaged one is replaced by."""
    digests = {10: written(checkpoints, 10), 20: written(checkpoints, 20)}
    with monkeypatch.context() as patch:
        count = killed_at(patch, 0, False)
        digests[30] = written(checkpoints, 30)
        operations = count[0]
    assert operations >= 12
    points = 0
    for step in (40, 30):  # a new one; over an old one
        for moment in range(1, operations + 3):
            for is_after in (False, True):
                shutil.rmtree(checkpoints.folder / f"step-{40:08d}", ignore_errors=True)
                latest = move(checkpoints.state)
                with monkeypatch.context() as patch:
                    count = killed_at(patch, moment, is_after)
                    checkpoints.save(step, {})
                    error = checkpoints._writing.exception()
                    checkpoints._writing = None
                if not isinstance(error, Killed):
                    continue
                points += 1
                move(checkpoints.state)
                found = checkpoints.restore()
                assert found in (20, 30, 40)
                own = digests[found] if found in digests and found != step else latest
                assert checkpoints.state.sha256() in (own, digests.get(found))
                digests[30] = written(checkpoints, 30)
    assert points >= 50
    assert not checkpoints.damaged


def newest(checkpoints):
    return manifest.folder_of(checkpoints.folder, 20)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)


def data(folder):
    return next(folder.glob("state.data-*"))


def in_its_place(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "a bit of the data": lambda f: flip(data(f), 0.5),
    "a bit of the index": lambda f: flip(f / "state.index", 0.5),
    "a digit of the manifest": lambda f: (f / "manifest.json").write_text(
        (f / "manifest.json").read_text().replace('"step": 20', '"step": 21')
    ),
    "truncated data": lambda f: os.truncate(data(f), data(f).stat().st_size // 2),
    "empty data": lambda f: os.truncate(data(f), 0),
    "empty manifest": lambda f: os.truncate(f / "manifest.json", 0),
    "no data": lambda f: data(f).unlink(),
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "a folder for the data": lambda f: in_its_place(data(f)),
    "a folder for the manifest": lambda f: in_its_place(f / "manifest.json"),
    "no index": lambda f: (f / "state.index").unlink(),
    "another step's folder": lambda f: shutil.copytree(f, f.parent / "step-00000030"),
    "files of another step": lambda f: shutil.copy(
        data(f.parent / "step-00000010"), data(f).with_suffix(data(f).suffix)
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_one_before_is_used(checkpoints, damage):
    ten, twenty = written(checkpoints, 10), written(checkpoints, 20)
    DAMAGES[damage](newest(checkpoints))
    move(checkpoints.state)
    wanted = (20, twenty) if damage == "another step's folder" else (10, ten)
    assert (checkpoints.restore(), checkpoints.state.sha256()) == wanted
    ((folder, found),) = checkpoints.damaged.items()
    assert str(found).startswith("is damaged: ") and folder.parent == checkpoints.folder


class Unreadable:
    """Lets every look at some paths fail, as a broken disk or a file of another user's does."""

    def __init__(self, monkeypatch, error, is_meant):
        self.error, self.is_meant = error, is_meant
        for owner, name in ((Path, "open"), (Path, "stat"), (os, "listdir"), (os, "scandir")):
            monkeypatch.setattr(owner, name, self.failing(getattr(owner, name)))

    def failing(self, operation):
        def call(path, *args, **kwargs):
            if self.is_meant(Path(path)):
                raise self.error
            return operation(path, *args, **kwargs)

        return call


BROKEN = OSError(errno.EIO, "Input/output error")
FORBIDDEN = PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("error", [BROKEN, FORBIDDEN], ids=["broken", "forbidden"])
@pytest.mark.parametrize("name", ["state.data-*", "state.index", "manifest.json", "*"])
def test_what_cannot_be_read_is_named_and_the_one_before_is_used(
    checkpoints, monkeypatch, error, name
):
    ten, _ = written(checkpoints, 10), written(checkpoints, 20)
    move(checkpoints.state)
    folder = newest(checkpoints)
    Unreadable(monkeypatch, error, lambda path: path.match(f"{folder.name}/{name}"))
    assert (checkpoints.restore(), checkpoints.state.sha256()) == (10, ten)
    (found,) = checkpoints.damaged.values()
    assert str(found).startswith("cannot be read: ") and error.strerror in str(found)
    checkpoints.set_aside()
    assert folder.with_name(f"unread-{folder.name}").exists()


def test_what_cannot_be_read_is_not_to_be_removed(checkpoints, monkeypatch):
    written(checkpoints, 10)
    Unreadable(monkeypatch, FORBIDDEN, lambda path: path.name == "manifest.json")
    with pytest.raises(CheckpointError, match=r"cannot be read: .*Permission denied") as caught:
        checkpoints.restore()
    assert "let them be read" in str(caught.value) and "remove" not in str(caught.value)


def test_checkpoints_that_cannot_be_listed_are_one_error(checkpoints, monkeypatch):
    written(checkpoints, 10)
    Unreadable(monkeypatch, BROKEN, lambda path: path == checkpoints.folder)
    message = rf"cannot read {checkpoints.folder} \(Input/output error\)"
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore()


def test_a_copy_beside_the_checkpoints_is_none(checkpoints):
    written(checkpoints, 10)
    folder = manifest.folder_of(checkpoints.folder, 10)
    shutil.copytree(folder, folder.with_name(f"{folder.name}.before"))
    assert checkpoints.restore() == 10 and not checkpoints.damaged


@pytest.fixture
def single(checkpoints):
    """A run with --keep=1 whose newest checkpoint but one is whole."""
    checkpoints.keep = 2
    for step, accuracy in ((10, 0.2), (20, 0.9)):
        move(checkpoints.state)
        checkpoints.save(step, {"accuracy": accuracy})
        assert checkpoints.wait() is None
    data(newest(checkpoints)).unlink()
    checkpoints.keep = 1
    return checkpoints


def test_what_was_rejected_is_set_aside_and_displaces_none(single):
    """It would be the one that is kept, the newest as well as the best."""
    assert single.restore() == 10
    single.set_aside()
    for step in (11, 12):
        assert set(manifest.steps(single.folder)) & {10, step - 1}
        digest = written(single, step)
    names = {p.name for p in single.folder.iterdir()}
    assert names == {"step-00000010", "step-00000012", "damaged-step-00000020"}  # 10 is the best
    move(single.state)
    assert (single.restore(), single.state.sha256()) == (12, digest)
    assert not single.damaged


def test_of_one_that_is_rejected_again_the_latter_is_left(single):
    single.restore()
    single.set_aside()
    written(single, 20)
    (newest(single) / "state.index").unlink()
    assert single.restore() == 10
    single.set_aside()
    (left,) = single.folder.glob("damaged-*")
    assert list(left.glob("state.data-*")) and not (left / "state.index").exists()


def test_who_only_reads_names_it_and_sets_nothing_aside(tiny, single, joined, capfd):
    found = trained.evaluate(tiny, Layout(), joined, single.folder.parent, "")
    assert found["step"] == 10
    message = f"warning: {newest(single)} is damaged: .* is missing; step 10 is used\n"
    assert re.match(message, capfd.readouterr().err)
    assert manifest.steps(single.folder) == [10, 20]


def test_what_cannot_be_set_aside_is_one_error(single, monkeypatch):
    single.restore()
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(BROKEN))
    with pytest.raises(CheckpointError, match=r"step-00000020 .*Input/output error"):
        single.set_aside()


def test_a_run_says_what_it_sets_aside(tiny, train, tmp_path, capfd):
    train(tiny, stop_at_step=2, checkpoint_every=1)
    data(tmp_path / "run/checkpoints/step-00000002").unlink()
    result = train(tiny, keep=1)
    message = r"step-00000002 is damaged: .*; kept as damaged-step-00000002, going on from step 1\n"
    assert re.search(rf"warning: \S+{message}", capfd.readouterr().out)
    assert result["finished"]
    assert manifest.steps(tmp_path / "run/checkpoints") == [4]


def test_killed_while_an_old_one_is_removed_it_does_not_look_damaged(checkpoints, monkeypatch):
    checkpoints.keep = 1
    written(checkpoints, 10)

    def killed(folder, **_):
        if folder.exists():
            data(folder).unlink()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            written(checkpoints, 20)
    for step in manifest.steps(checkpoints.folder):
        folder = manifest.folder_of(checkpoints.folder, step)
        manifest.verify(folder, manifest.read(folder))
    written(checkpoints, 30)  # and what is left of it is swept
    assert [p.name for p in checkpoints.folder.iterdir()] == ["step-00000030"]


def test_an_orphan_of_a_write_is_swept(checkpoints):
    (checkpoints.folder / ".writing-00000005").mkdir(parents=True)
    (checkpoints.folder / ".writing-00000005/state.index").write_bytes(b"half")
    assert checkpoints.restore() == 0
    written(checkpoints, 10)
    assert [p.name for p in checkpoints.folder.iterdir()] == ["step-00000010"]


def test_none_is_left_when_all_are_damaged(checkpoints):
    for step in (10, 20):
        written(checkpoints, step)
        data(manifest.folder_of(checkpoints.folder, step)).unlink()
    with pytest.raises(CheckpointError, match=r"step-00000020 .*step-00000010 .*begin anew"):
        checkpoints.restore()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.width=6", r"model\.width: 6 here, 4 there"),
        ("optimization.optimizer=lars", r"optimization\.optimizer: lars here, sgd there"),
        ("precision=float16", r"precision: float16 here, float32 there"),
        ("data.synthetic_classes=9", r"data\.synthetic_classes: 9 here, 7 there"),
    ],
)
def test_another_experiment_is_a_table_and_no_fall_back(
    tiny, checkpoints, joined, setting, message, tmp_path
):
    written(checkpoints, 10)
    other = override(tiny, [setting])
    about = {"experiment": config.as_dict(other)}
    there = Checkpoints(checkpoints.folder, State(other, SPEC, 7), joined, 3, about)
    with pytest.raises(CheckpointError, match=message):
        there.restore()


def test_another_model_of_the_same_description_is_refused(tiny, checkpoints, joined):
    written(checkpoints, 10)
    other = State(override(tiny, ["model.width=6"]), SPEC, 7)
    there = Checkpoints(checkpoints.folder, other, joined, 3, checkpoints.about)
    with pytest.raises(CheckpointError, match="of another model"):
        there.restore()


def test_a_newer_format_is_refused(checkpoints, monkeypatch):
    monkeypatch.setattr(manifest, "FORMAT", 2)
    written(checkpoints, 10)
    monkeypatch.setattr(manifest, "FORMAT", 1)
    with pytest.raises(CheckpointError, match="has format 2"):
        checkpoints.restore()


def test_saving_takes_the_state_as_it_is(tiny, checkpoints):
    """Steps go on while it is written, in place where TensorFlow can."""
    data = tiny.data.open("")
    state = checkpoints.state
    step = SingleStageStep(tiny, Layout(), state, range(6))
    batches = iter(data.train(0, 4, lambda k: k, 36))
    step(0, batches, 0.1)
    digest, snapshot = state.sha256(), state.snapshot()
    before = {name: value.numpy() for name, value in snapshot.items()}
    checkpoints.save(1, {})
    for s in range(1, 6):
        step(s, batches, 0.1)
    assert checkpoints.wait() is None
    assert state.sha256() != digest
    for name, value in snapshot.items():
        np.testing.assert_array_equal(value.numpy(), before[name])
    checkpoints.restore()
    assert state.sha256() == digest


def test_an_unwritable_folder_is_an_error_of_the_next_save(checkpoints, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_bundle", full)
        assert checkpoints.save(10, {}) is None  # written beside training: not known yet
        error = checkpoints.save(20, {})
        assert isinstance(error, CheckpointError) and "No space left" in str(error)
        assert "step 10" in str(error)
        checkpoints.wait()
    assert not list(checkpoints.folder.iterdir())  # nothing half written is left
    written(checkpoints, 30)
    assert checkpoints.restore() == 30


def test_a_checkpoint_of_an_older_tensorflow_goes_on(joined, tmp_path):
    """Written by 2.18.1: two of the six steps of `tiny`, with --stop_at_step=2."""
    folder = tmp_path / "run/checkpoints"
    shutil.copytree(ROOT / "tests/fixtures/run_of_tensorflow_2_18", folder)
    content = json.loads((folder / "step-00000002/manifest.json").read_text())["content"]
    assert content["versions"]["tensorflow"] == "2.18.1"
    mine: dict = {}
    exec(SHALLOW, mine)
    tiny = mine["tiny"]()
    tiny = dataclasses.replace(tiny, data=Images(**vars(tiny.data)))
    restored = trained.restore(tiny, Layout(), joined, tmp_path / "run", str(tmp_path))
    assert restored.step == 2
    assert restored.setup.state.sha256() == content["weights_sha256"]


FULL = """
mount -t tmpfs -o size=600k tmpfs small
python -m app train --experiment=mine.py:tiny --exact --workdir=small/run --checkpoint_every=1 \
    --set=steps=4 --keep=9 > out 2>&1
echo $? > code
mount -o remount,ro small
python -m app evaluate --workdir=small/run >> out 2>&1
echo $? >> code
python -m app train --workdir=small/run >> out 2>&1
echo $? >> code
cp -r small/run kept
"""


def test_a_full_disk_and_one_that_cannot_be_written(tmp_path):
    """600 kB hold one or two checkpoints of the experiment, not four."""
    (tmp_path / "mine.py").write_text(SHALLOW.replace("Shallow()", "Shallow(512)"))
    (tmp_path / "small").mkdir()
    (tmp_path / "job.sh").write_text(FULL)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    command = ["unshare", "--map-root-user", "--mount", "bash", "job.sh"]
    subprocess.run(command, cwd=tmp_path, env=env, check=True, timeout=240)
    out = (tmp_path / "out").read_text()
    trained, evaluated, again = map(int, (tmp_path / "code").read_text().split())
    assert trained == 4 and "cannot write the checkpoint of step" in out, out
    assert evaluated == 0 and '"step"' in out, out  # the newest that was written is whole
    assert again == 2 and "cannot write to small/run (Read-only file system)" in out, out
    left = manifest.steps(tmp_path / "kept/checkpoints")
    assert left and left[-1] < 4


@dataclasses.dataclass(frozen=True)
class Poisoned(Pixels):
    """Images of which one is not a number."""

    def open(self, data_dir):
        data = super().open(data_dir)
        train = data.train

        def poisoned(*args):
            for inputs, targets, ids in train(*args):
                is_bad = tf.reshape(ids == 17, [-1, 1, 1, 1])
                yield tf.where(is_bad, np.nan, inputs), targets, ids

        data.train = poisoned
        return data


@pytest.fixture
def poisoned(tiny):
    return dataclasses.replace(tiny, data=Poisoned(**vars(tiny.data)), steps=9)


def bad_steps(workdir):
    lines = map(json.loads, (workdir / "nonfinite.jsonl").read_text().splitlines())
    return [(s["step"], [i for ids in s["micro_batches"].values() for i in ids]) for s in lines]


def test_numbers_that_are_not_finite_end_the_run_and_name_the_examples(poisoned, train, tmp_path):
    with pytest.raises(NumbersError, match=r"nonfinite\.jsonl.*set update\.on_nonfinite=skip"):
        train(poisoned)
    ((step, ids),) = bad_steps(tmp_path / "run")
    assert 17 in ids and len(ids) == 24 and step <= 5


def test_or_the_step_is_skipped_within_a_budget(poisoned, train, tmp_path):
    skipping = override(poisoned, ["update.on_nonfinite=skip"])
    result = train(skipping)
    bad = bad_steps(tmp_path / "run")
    assert len(bad) >= 2 and all(17 in ids for _, ids in bad)
    assert result["changes_numbers"] == [f"{len(bad)} steps skipped that were not finite"]
    with pytest.raises(NumbersError, match=r"more than update\.skip_budget=1"):
        train(override(skipping, ["update.skip_budget=1"]), name="short")
    # A run that was stopped in between skips the same ones, and counts them on.
    train(skipping, name="parts", stop_at_step=bad[0][0])
    again = train(skipping, name="parts")
    assert again["weights_sha256"] == result["weights_sha256"]
    assert again["changes_numbers"] == result["changes_numbers"]
