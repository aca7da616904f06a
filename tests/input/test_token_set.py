"""Targets of tokens: the next word, a masked one, the case of a word's letters."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from input.text import Text

pytestmark = pytest.mark.fast
BERT = Path(__file__).parents[1] / "fixtures" / "bert"
LINES = [
    "Good MOVIE, isn't it\t1", "the film\u00a0was Good\t0", "WATCHING 1 movie (I was)\t1",
    "what a film\t0", "A-OK ! Fine\t1", "no\t0",
]  # fmt: skip


@pytest.fixture
def opened(tmp_path):
    def run(predicts, lines=LINES, **changes):
        path = tmp_path / "train.tsv"
        if not path.exists():
            path.write_text("\n".join(["text\tlabel", *lines]))
        words = (BERT / "vocab.txt").read_text().rstrip("\n")
        (tmp_path / "vocab.txt").write_text(f"{words}\n[MASK]\n")
        given = {"vocabulary": str(tmp_path), "evaluation_file": str(path), "max_length": 24}
        return Text(str(path), predicts=predicts, **given | changes).open("")

    return run


def rows(batches):
    return [(x.numpy(), y.numpy(), ids.numpy()) for x, y, ids in batches]


def test_each_target_is_the_token_after_it(opened):
    data = opened("next")
    assert data.num_classes == data.wordpiece.size and data.classes == ()
    for x, y, _ in rows(data.evaluation(3, range(6))):
        assert y.dtype == np.int32 and y.shape == x.shape
        after = np.pad(x[:, 1:], [[0, 0], [0, 1]])
        assert (y == np.where(after > 0, after, -1)).all()
        assert (y != -1).sum() == (x != 0).sum() - len(x)


def plain_case(words):
    letters = [[c for c in word if c.isalpha()] for word in words]
    return [
        -1 if not own else 2 if len(own) > 1 and all(c.isupper() for c in own)
        else 1 if own[0].isupper() else 0
        for own in letters
    ]  # fmt: skip


@pytest.mark.parametrize("max_length", [24, 7])
def test_each_piece_of_a_word_has_the_case_of_the_word(opened, max_length):
    data = opened("case", max_length=max_length)
    assert data.classes == ("lower", "Capitalised", "UPPER") and data.num_classes == 3
    ((x, y, _),) = rows(data.evaluation(6, range(6)))
    for line, ids, found in zip(LINES, x, y, strict=True):
        words = line.split("\t")[0].split(" ")
        pieces = [data.wordpiece.pieces(tf.constant([word])).numpy()[0] for word in words]
        expected = np.repeat(plain_case(words), [len(each) for each in pieces])[: max_length - 2]
        assert (
            ids[1 : len(expected) + 1].tolist() == np.concatenate(pieces)[: max_length - 2].tolist()
        )
        assert found[0] == -1 and (found[len(expected) + 1 :] == -1).all()
        assert found[1 : len(expected) + 1].tolist() == expected.tolist()


MANY = [f"movie good film was the {i % 10} a b c d e f g h\t{i % 2}" for i in range(200)]


def test_masked_words_are_a_function_of_seed_and_place(opened):
    data = opened("masked", MANY)

    def found(seed, number):
        ((x, y, ids),) = rows(data.train(seed, 20, lambda k: k + number, 1))
        return x, y, ids

    x, y, ids = found(0, 3)
    again = found(0, 3)
    assert all((a == b).all() for a, b in zip((x, y, ids), again, strict=True))
    assert (found(1, 3)[1] != y).any()
    later = {int(i): row for i, row in zip(*found(0, 13)[2:0:-1], strict=True)}
    both = [(row, later[int(i)]) for i, row in zip(ids, y, strict=True) if int(i) in later]
    assert not both or any((a != b).any() for a, b in both)  # another epoch hides other words


def test_words_are_masked_as_bert_masks_them(opened):
    data = opened("masked", MANY)
    plain = {i: row for x, _, ids in rows(opened("next", MANY).train(0, 50, lambda k: k, 4))
             for i, row in zip(ids, x, strict=True)}  # fmt: skip
    counts = np.zeros(4)
    total = 0
    for epoch in range(10):
        for x, y, ids in rows(data.train(0, 50, lambda k, e=epoch: k + 4 * e, 4)):
            original = np.array([plain[i] for i in ids])
            hidden = y >= 0
            assert (y[hidden] == original[hidden]).all() and (x[~hidden] == original[~hidden]).all()
            assert not hidden[np.isin(original, [0, *data.special])].any()
            shown = x[hidden]
            is_mask, is_same = shown == data.mask, shown == original[hidden]
            counts += [is_mask.sum(), (~is_mask & ~is_same).sum(), is_same.sum(), hidden.sum()]
            total += (~np.isin(original, [0, *data.special])).sum()
    assert counts[3] / total == pytest.approx(0.15, abs=0.01)
    assert counts[:3] / counts[3] == pytest.approx([0.8, 0.1, 0.1], abs=0.03)


def test_an_evaluation_masks_the_same_words_however_it_is_divided(opened):
    data = opened("masked", MANY)
    whole = np.concatenate([y for _, y, _ in rows(data.evaluation(20, range(40)))])
    parts = [rows(data.evaluation(10, range(a, a + 10))) for a in range(0, 40, 10)]
    assert (whole == np.concatenate([y for part in parts for _, y, _ in part])).all()
    assert len({tuple(row) for row in whole.tolist()}) > 5
