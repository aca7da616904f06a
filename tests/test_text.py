import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from app import config
from input import InputError, text_set
from input.datasets.movie_sentences import split_of
from input.text import Text
from input.wordpiece import WordPiece

BERT = Path(__file__).parent / "fixtures" / "bert"


def test_tokens_are_the_reference_s():
    answers = json.loads((BERT / "tokens.json").read_text())
    ids = WordPiece(BERT, 512)(tf.constant([a["text"] for a in answers])).numpy()
    for row, answer in zip(ids, answers, strict=True):
        start, *tokens, end = row[row > 0]
        assert (start, end) == (2, 3)
        assert tokens == answer["ids"], answer["text"]


def test_long_texts_are_cut_and_lengths_rounded_up():
    wordpiece = WordPiece(BERT, max_length=12)
    texts = tf.constant(["a b", "a " * 40])
    assert wordpiece.lengths(texts).numpy().tolist() == [4, 42]
    ids = wordpiece(texts).numpy()
    assert ids.shape == (2, 12) and ids[1, -1] == 3 and (ids[0, 4:] == 0).all()
    assert wordpiece(texts[:1]).shape == (1, 8)


def batches(data, micro_batch=4, count=6):
    return list(data.train(0, micro_batch, lambda k: k, count))


def test_a_batch_holds_the_texts_of_its_ids(sentences):
    data = sentences.data.open("")
    for ids, targets, examples in batches(data):
        texts, labels = data.training.fetch(examples.numpy())
        assert np.array_equal(ids, data.wordpiece(tf.constant(texts)))
        assert np.array_equal(tf.argmax(targets, -1), labels)
        assert ids.shape[1] == -(-int(tf.math.count_nonzero(ids, -1).numpy().max()) // 8) * 8


def test_evaluation_takes_every_text_once(sentences):
    data = sentences.data.open("")
    n = data.num_evaluation
    weights = sum(
        float(tf.reduce_sum(w))
        for share in (range(0, n // 3), range(n // 3, n))
        for _, _, w in data.evaluation(4, share)
    )
    assert weights == n


def test_a_tenth_is_held_out_by_the_text_alone(sentences):
    data = sentences.data.open("")
    assert data.num_train + data.num_evaluation == 200
    texts, _ = data.held_out.fetch(range(data.num_evaluation))
    assert {split_of(t.decode()) for t in texts} == {"test"}


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_a_file_of_one_s_own(tmp_path, kind):
    rows = [('He said "no", twice', "bad"), ("it's a film\u2019s film", "good")] * 40
    path = tmp_path / f"mine.{kind}"
    if kind == "jsonl":
        lines = [json.dumps({"review": t, "stars": label}) for t, label in rows]
    else:
        comma = "\t" if kind == "tsv" else ","
        quote = (lambda t: t) if kind == "tsv" else (lambda t: '"' + t.replace('"', '""') + '"')
        lines = [f"review{comma}stars", *(f"{quote(t)}{comma}{label}" for t, label in rows)]
    path.write_text("\n".join(lines), encoding="utf-8")
    mine = Text(
        str(path), vocabulary=str(BERT), text_field="review", label_field="stars",
        evaluation_file=str(path),
    )  # fmt: skip
    report = mine.prepare(str(tmp_path))
    assert "80 texts" in report and "0 are cut" in report
    data = mine.open(str(tmp_path))
    assert data.training.fetch([0, 1]) == ([t.encode() for t, _ in rows[:2]], [0, 1])
    assert data.num_classes == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"text\tlabel\nfine\tgood\n\xff\xfe\tbad\n", ["UTF-8"]),
        (b"text\tlabel\nfine\tgood\n  \tbad\n", ["line 3", "'text'", "empty"]),
        (b"text\tlabel\nfine\tgood\nx\n", ["line 3", "'label'"]),
        (b"words\tlabel\nfine\tgood\n", ["line 2", "'text'", "data.text_field"]),
        (b"text\tlabel\nfine\tgreat\nx\tbad\n", ["line 2", "'great'", "bad, good"]),
    ],
)
def test_bad_rows_are_named(tmp_path, content, words):
    (tmp_path / "mine.tsv").write_bytes(content)
    mine = Text(str(tmp_path / "mine.tsv"), vocabulary=str(BERT), classes=("bad", "good"),
                evaluation_file=str(tmp_path / "mine.tsv"))  # fmt: skip
    with pytest.raises(InputError) as error:
        mine.prepare(str(tmp_path))
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("vocabulary", "words"),
    [("nowhere", ["'nowhere'", "minilm"]), ("", ["vocab.txt"])],
)
def test_a_vocabulary_that_is_none(tmp_path, vocabulary, words):
    (tmp_path / "mine.tsv").write_text("text\tlabel\nfine\tgood\n")
    mine = Text(str(tmp_path / "mine.tsv"), vocabulary=vocabulary or str(tmp_path))
    with pytest.raises(InputError) as error:
        mine.open(str(tmp_path))
    assert all(word in str(error.value) for word in words)


def test_the_baseline_stands_beside_the_result(sentences, train):
    result = train(config.override(sentences, ["data.has_baseline=true", "steps=1"]))
    baseline = result["baseline"]
    assert baseline["examples"] == result["metrics"]["test"]["examples"]
    assert 0 <= baseline["accuracy"] <= 1
    assert text_set.open_splits(sentences.data, "")[2] == "test"
