"""Classes and vocabulary belong to a run: data that changed are refused, with both lists."""

import json

import pytest

from app.config import Layout
from app.errors import CheckpointError, UserError
from app.recovery import manifest
from app.training import trained, trainer
from app.training.data import meaning, require_same_meaning


@pytest.fixture
def run(words, train, tmp_path):
    """A trained run; its labels are 0 and 1."""
    train(words)
    return words


def relabelled(folder, old, new):
    path = folder / "train.tsv"
    path.write_text(path.read_text().replace(f"\t{old}", f"\t{new}"))


USES = {
    "resume": lambda e, joined, f: trainer.train(
        e, Layout(), joined, trainer.Run(f / "run", str(f / "data"))
    ),
    "evaluate": lambda e, joined, f: trained.evaluate(
        e, Layout(), joined, f / "run", str(f / "data")
    ),
    "predict and export": lambda e, joined, f: trained.restore(
        e, Layout(), joined, f / "run", str(f / "data")
    ),
}


@pytest.mark.parametrize("use", USES)
def test_a_renamed_class_is_refused_with_both_lists(run, joined, tmp_path, use):
    before = (tmp_path / "run/config.json").read_text()
    relabelled(tmp_path, 1, "top")
    with pytest.raises(UserError) as refused:
        USES[use](run, joined, tmp_path)
    assert "2 (0 '0', 1 '1') when it was trained" in str(refused.value)
    assert "2 (0 '0', 1 'top') in the data now" in str(refused.value)
    assert refused.value.exit_code == CheckpointError.exit_code
    assert (tmp_path / "run/config.json").read_text() == before


def test_another_order_of_classes_is_refused(run, joined, tmp_path):
    for old, new in ((0, "x"), (1, "0"), ("x", "1")):  # as names they are the same
        relabelled(tmp_path, old, new)
    USES["evaluate"](run, joined, tmp_path)
    for old, new in ((0, "b"), (1, "a")):
        relabelled(tmp_path, old, new)
    with pytest.raises(UserError, match="0 'a', 1 'b'"):
        USES["evaluate"](run, joined, tmp_path)


def test_another_vocabulary_of_the_same_size_is_refused(run, joined, tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text(path.read_text().replace("good\nbad", "bad\ngood"))
    with pytest.raises(UserError, match=r"vocabulary: [0-9a-f]+ when it was trained, [0-9a-f]+ in"):
        USES["evaluate"](run, joined, tmp_path)


def test_more_data_of_the_same_meaning_are_warned_of(run, joined, tmp_path, capfd):
    with (tmp_path / "train.tsv").open("a") as file:
        file.write("\na b c good\t1" * 20)
    USES["evaluate"](run, joined, tmp_path)
    assert "data are not" not in capfd.readouterr().err  # nothing is trained
    USES["resume"](run, joined, tmp_path)
    assert "warning: the data are not those of the checkpoint: " in capfd.readouterr().out


def test_a_checkpoint_of_an_older_version_says_what_it_does_not_know(run, joined, tmp_path, capfd):
    folder = manifest.folder_of(tmp_path / "run/checkpoints", 3)
    content = manifest.read(folder)
    assert content.pop("meaning") == meaning(run.data.open(""))
    (folder / "manifest.json").unlink()
    manifest.write(folder, content)
    USES["evaluate"](run, joined, tmp_path)
    assert "did not keep the names of its classes" in capfd.readouterr().err


def test_many_classes_are_shown_where_they_differ():
    then = [f"class {i}" for i in range(1000)]
    now = [*then[:700], "other", *then[701:]]
    with pytest.raises(CheckpointError) as refused:
        require_same_meaning({"classes": now}, {"classes": then}, "run")
    assert "700 'class 700', ...) when" in str(refused.value) and len(str(refused.value)) < 400
    require_same_meaning({"classes": then}, json.loads(json.dumps({"classes": then})), "run")
