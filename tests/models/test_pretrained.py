"""A folder of pretrained weights and its vocabulary, from the flags to the first step."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from ranks import forked, succeeded

from app import config, experiments
from app.cli import workdir
from app.cli.overrides import override
from app.config import Layout
from app.errors import UsageError

BERT = Path(__file__).parents[1] / "fixtures" / "bert"
TEXTS = """
from app.config import Experiment
from input.text import Text
from models.transformer import Transformer

def tiny():
    return Experiment(
        model=Transformer(layers=3, width=32, heads=4, vocabulary=50, positions=24),
        data=Text("./texts.tsv", max_length=8, has_baseline=False),
        global_batch=16, micro_batch=8, steps=1,
    )
"""


@pytest.fixture
def user(tmp_path):
    """A folder with texts, an experiment and two BERTs with as many words, in another order."""
    rows = [f"{'a b c'[: 1 + 2 * (i % 3)]}\t{i % 2}" for i in range(60)]
    (tmp_path / "texts.tsv").write_text("\n".join(["text\tlabel", *rows]))
    (tmp_path / "mine.py").write_text(TEXTS)
    words = (BERT / "vocab.txt").read_text().split("\n")[:50]
    for name, places in (("one", words), ("two", [*words[:40], *words[:39:-1]])):
        shutil.copytree(BERT, tmp_path / name)
        (tmp_path / name / "vocab.txt").write_text("\n".join(places))
    return tmp_path


def run(user, command, *settings):
    flags = ["--experiment=mine.py:tiny", "--data_dir=data", *(f"--set={s}" for s in settings)]
    flags += ["--workdir=run"] if command == "train" else []
    return forked(1, user, command, *flags)


@pytest.mark.ranks
def test_one_flag_is_enough(user):
    prepared = succeeded(run(user, "prepare", "model.init_from=one"))
    assert "weights: one in one" in prepared.stdout
    succeeded(run(user, "train", "model.init_from=one"))
    kept = json.loads((user / "run/config.json").read_text())["experiment"]
    assert kept["data"]["vocabulary"] == kept["model"]["init_from"] == "one"


@pytest.mark.ranks
@pytest.mark.parametrize("command", ["prepare", "train"])
@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        (["data.vocabulary=two"], 3, ["one/vocab.txt (50", "two/vocab.txt (50", "40 of them"]),
        (["model.layers=2"], 2, ["one", "model.layers=3 (not 2)"]),
        (["model.epsilon=1e-5"], 2, ["one", "model.epsilon=1e-12 (not 1e-05)"]),
    ],
)
def test_what_does_not_fit_is_one_message(user, command, settings, code, words):
    done = run(user, command, "model.init_from=one", *settings)
    assert done.returncode == code, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
    assert all(word in line for word in words), line


@pytest.mark.fast
@pytest.mark.parametrize(
    ("settings", "vocabulary"),
    [
        ([], "minilm"),
        (["model.init_from=none"], "minilm"),
        (["model.init_from=one"], "one"),
        (["model.init_from=one", "data.vocabulary=two"], "two"),
        (["data.vocabulary=two", "model.init_from=one"], "two"),
        (["data.vocabulary=none", "model.init_from=one"], "one"),
    ],
)
def test_a_vocabulary_that_is_not_given_is_the_weights_own(settings, vocabulary):
    given = override(experiments.load("sentiment_reviews"), settings)
    found = config.resolved(given)
    assert found.data.vocabulary == vocabulary
    assert found == config.resolved(found) and found.model == given.model
    images = experiments.load("resnet50_digits")
    assert config.resolved(images) is images


@pytest.mark.fast
def test_a_run_of_before_goes_on(tmp_path):
    experiment = config.resolved(experiments.load("sentiment_scratch"))
    workdir.claim(tmp_path, "sentiment_scratch", [], experiment, config.as_dict(Layout()), {})
    path = tmp_path / "config.json"
    kept = json.loads(path.read_text())
    # What config.json held then: no other activation, and the vocabulary by its name.
    assert "activation" not in kept["experiment"]["model"]
    assert kept["experiment"]["data"]["vocabulary"] == "minilm"
    workdir.check(tmp_path, experiment, Layout())
    other = dataclasses.replace(
        experiment, model=dataclasses.replace(experiment.model, activation="relu")
    )
    with pytest.raises(UsageError, match=r"model\.activation: relu here"):
        workdir.check(tmp_path, other, Layout())
