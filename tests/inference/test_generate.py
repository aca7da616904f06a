"""A language model continues texts as it was trained to, the same on any layout."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from conftest import sentences_in

from app.cli.overrides import override
from app.config import Layout
from app.errors import UsageError
from app.inference import predict
from app.inference.generate import Sampling
from app.objectives import LanguageModel
from input.raw import Limits


@pytest.fixture
def language(tmp_path):
    """Sentences that all go `a a b b`: a model of next words knows them after some steps."""
    experiment = sentences_in(tmp_path)
    model = dataclasses.replace(
        experiment.model, layers=2, width=32, pooling="none", norm="pre", causal=True, dropout=0.0
    )
    path = tmp_path / "train.tsv"
    text = "good bad good good bad"
    path.write_text("\n".join(["text\tlabel", *(f"{text}\t{i % 2}" for i in range(64))]))
    data = dataclasses.replace(experiment.data, predicts="next", evaluation_file=str(path))
    changed = dataclasses.replace(experiment, model=model, data=data, objective=LanguageModel())
    return override(changed, ["steps=30", "optimization.learning_rate=0.03"])


@pytest.fixture
def continued(train, joined, tmp_path):
    def run(experiment, texts, output="out.jsonl", batch=4, **sampling):
        if not (tmp_path / "run").exists():
            result = train(experiment)
            assert result["metrics"]["test"]["perplexity"] < 2
        (tmp_path / "prompts.txt").write_text("\n".join(texts))
        job = predict.Job(
            str(tmp_path / "prompts.txt"), tmp_path / output, None, None, 1, "trained", batch, 2,
            Limits(), Sampling(**sampling),
        )  # fmt: skip
        data_dir = str(tmp_path / "data")
        predict.main(experiment, Layout(), joined, tmp_path / "run", data_dir, job)
        lines = (tmp_path / output).read_text().splitlines()
        return [json.loads(line) for line in lines] if output.endswith("jsonl") else lines

    return run


def test_texts_are_continued(language, continued):
    prompts = ["good", "good bad good", "good bad"]
    rows = continued(language, prompts)
    assert [row["text"] for row in rows] == ["good bad good good bad"] * 3
    assert rows[1]["added"] == "good bad"
    few = continued(language, ["good"], "few.jsonl", words=2)
    assert few[0]["text"] == "good bad good"
    table = continued(language, ["good bad"], "table.csv")
    assert table == [
        "index,item,label,error,text,added",
        "0,1,,,good bad good good bad,good good bad",
    ]
    # What is drawn depends on the seed and the item's number, not on its batch.
    kinds = {}
    for seed in (1, 2):
        for batch in (1, 4):
            found = continued(
                language, prompts, f"{seed}-{batch}.jsonl", batch, temperature=3.0, seed=seed
            )
            kinds[seed, batch] = [row["text"] for row in found]
    assert kinds[1, 1] == kinds[1, 4] and kinds[2, 1] == kinds[2, 4]
    assert kinds[1, 1] != kinds[2, 1]


def test_masked_words_cannot_be_continued(language, joined, tmp_path):
    masked = override(language, [])
    masked = dataclasses.replace(masked, data=dataclasses.replace(masked.data, predicts="next"))
    data = masked.data.open("")
    from app.inference.generate import is_of_next_words

    assert is_of_next_words(masked.objective, data)
    with pytest.raises(UsageError, match=r"data\.predicts=next"):
        is_of_next_words(masked.objective, object())


def test_no_token_sees_those_after_it(language):
    from app.training.state import State

    state = State.of(language, language.data.open(""))
    a = np.array([[2, 4, 5, 6, 5, 3]], np.int32)
    b = np.array([[2, 4, 5, 4, 4, 4]], np.int32)
    for rows in (1, 2):  # one text is computed padded, two are packed
        first, second = (state.outputs(tf.constant(np.repeat(x, rows, 0))) for x in (a, b))
        np.testing.assert_allclose(first[:, :3], second[:, :3], atol=1e-6)
        assert np.abs(first[:, 3:] - second[:, 3:]).max() > 1e-3
