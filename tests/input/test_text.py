import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from app.cli.overrides import override
from app.recovery import heartbeat
from app.training.data import open_data
from input import InputError, baselines
from input.order import split_of
from input.text import Text, text_set
from input.text.wordpiece import WordPiece

BERT = Path(__file__).parents[1] / "fixtures" / "bert"


def test_tokens_are_the_reference_s():
    answers = json.loads((BERT / "tokens.json").read_text())
    ids = WordPiece(BERT, 512)(tf.constant([a["text"] for a in answers])).numpy()
    for row, answer in zip(ids, answers, strict=True):
        start, *tokens, end = row[row > 0]
        assert (start, end) == (2, 3)
        assert tokens == answer["ids"], answer["text"]


WORDPIECE = json.loads(lzma.decompress((BERT.parent / "wordpiece.json.xz").read_bytes()))


def with_vocabulary(folder, words, **settings):
    """Returns a folder with vocab.txt, and tokenizer_config.json if there are settings."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def as_saved(folder, change=lambda tokenizer: None, place=0, most=9):
    """Writes a tokenizer.json as the reference saves it, of the first words, then changed."""
    tokenizer = json.loads(json.dumps(WORDPIECE["saved"][place]["tokenizer.json"]))
    tokenizer["model"]["vocab"] = {word: i for i, word in enumerate(WORDPIECE["words"][:most])}
    change(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize("kind", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize("place", range(len(WORDPIECE["saved"])))
def test_ids_of_every_setting_are_the_reference_s(tmp_path, place, kind):
    if kind == "vocab.txt":
        settings = WORDPIECE["saved"][place]["tokenizer_config.json"]
        with_vocabulary(tmp_path, WORDPIECE["words"], **settings)
    else:
        as_saved(tmp_path, place=place, most=None)
    wordpiece = WordPiece(tmp_path, 512)
    texts = WORDPIECE["texts"]
    assert len(texts) == 3000
    some = [wordpiece(tf.constant(texts[i : i + 30])).numpy() for i in range(0, len(texts), 30)]
    rows = [row[row > 0].tolist() for ids in some for row in ids]
    for text, row, ids in zip(texts, rows, WORDPIECE["ids"], strict=True):
        assert row == [2, *ids[place], 3], ascii(text)


def test_a_long_word_changes_no_other_text(tmp_path):
    """In a batch with a long word, all texts are split into words by other operators."""
    texts = WORDPIECE["texts"][:1000]
    rows = WordPiece(with_vocabulary(tmp_path, WORDPIECE["words"]), 512)([*texts, "a" * 101])
    for text, row, ids in zip(texts, rows.numpy(), WORDPIECE["ids"], strict=False):
        assert row[row > 0].tolist() == [2, *ids[0], 3], ascii(text)


@pytest.mark.parametrize("is_split", [True, False])
def test_a_saved_graph_gives_the_same_ids(tmp_path, is_split):
    folder = with_vocabulary(tmp_path / "f", WORDPIECE["words"], tokenize_chinese_chars=is_split)
    wordpiece, module = WordPiece(folder, 16), tf.Module()
    module.ids = tf.function(wordpiece.__call__, input_signature=[tf.TensorSpec([None], tf.string)])
    tf.saved_model.save(module, str(tmp_path / "saved"))
    found = tf.saved_model.load(str(tmp_path / "saved"))
    for texts in (["不错 film", "good"], ["不错" * 60, "b" * 101, "a"]):
        assert np.array_equal(found.ids(tf.constant(texts)), wordpiece(tf.constant(texts)))


def test_the_locale_is_no_part_of_it(tmp_path):
    words = [*MARKS, "i", "##i", "##\u0307", "I", "\u0131", "x"]
    with_vocabulary(tmp_path, words, strip_accents=False)
    code = "import sys, pathlib; from input.text.wordpiece import WordPiece; "
    code += "print(WordPiece(pathlib.Path(sys.argv[1]), 16)(['I I \u0130']))"
    answers = {
        locale: subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], env=os.environ | {"LC_ALL": locale},
            capture_output=True, text=True, check=True,
        ).stdout
        for locale in ("C.UTF-8", "tr_TR.UTF-8")
    }  # fmt: skip
    assert len(set(answers.values())) == 1 and "2 4 4 4 6 3" in answers["C.UTF-8"]


def test_tokens_that_no_text_has_keep_their_places(tmp_path):
    words = ["[PAD]", "a", "[UNK]", "[CLS]", "[SEP]", "\u2028", "x\x85", "b", "", "a", "##"]
    wordpiece = WordPiece(with_vocabulary(tmp_path, words), 16)
    assert wordpiece.size == len(words)
    # Of a token that is there twice the last is meant, as in the reference.
    assert wordpiece(tf.constant(["a b c"])).numpy().tolist() == [[3, 9, 7, 2, 4, 0, 0, 0]]


MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: with_vocabulary(f, ["a", *MARKS]), ["[PAD] as token 1", "token 0"]),
        (lambda f: with_vocabulary(f, [*MARKS, "[PAD]"]), ["[PAD] as token 4", "nowhere else"]),
        (lambda f: with_vocabulary(f, MARKS[:3]), ["vocab.txt", "lacks [SEP]"]),
        (lambda f: with_vocabulary(f, MARKS, do_lower_case="no"), ["do_lower_case", "'no'"]),
        (lambda f: with_vocabulary(f, MARKS, do_basic_tokenize=False), ["do_basic_tokenize=False"]),
        (lambda f: with_vocabulary(f, MARKS, tokenizer_class="BertJapaneseTokenizer"),
         ["BertJapaneseTokenizer"]),
        (lambda f: (f / "vocab.txt").write_text("version https://git-lfs.github.com/spec/v1\n"),
         ["vocab.txt", "git lfs pull"]),
        (lambda f: (f / "vocab.txt").write_bytes(b"\xff"), ["vocab.txt", "utf-8"]),
        (lambda f: (f / "tokenizer.json").write_text("[]"), ["tokenizer.json", "object"]),
        (lambda f: (f / "tokenizer.json").write_text("{"), ["tokenizer.json", "not JSON"]),
        (lambda f: as_saved(f, lambda t: t.update(model={"type": "BPE"})), ["model", "'BPE'"]),
        (lambda f: as_saved(f, lambda t: t.update(model={"type": "Unigram"})), ["'Unigram'"]),
        (lambda f: as_saved(f, lambda t: t.update(normalizer={"type": "NFC"})),
         ["normalizer", "'NFC'", "BertNormalizer"]),
        (lambda f: as_saved(f, lambda t: t.update(pre_tokenizer=None)), ["pre_tokenizer"]),
        (lambda f: as_saved(f, lambda t: t.update(post_processor=None)),
         ["post_processor", "['A']"]),
        (lambda f: as_saved(f, lambda t: t["model"].update(max_input_chars_per_word=50)),
         ["max_input_chars_per_word 50", "100"]),
        (lambda f: as_saved(f, lambda t: t["added_tokens"].append({"content": "<x>", "id": 9})),
         ["added token '<x>'"]),
        (lambda f: as_saved(f, lambda t: t["model"]["vocab"].update(far=10**12)), ["from 0"]),
        (lambda f: as_saved(f, lambda t: t.update(added_tokens=[1])), ["not as tokenizers"]),
    ],
)  # fmt: skip
def test_a_tokenizer_of_another_kind_is_refused(tmp_path, make, words):
    make(tmp_path)
    with pytest.raises(InputError) as error:
        WordPiece(tmp_path, 16)
    assert all(word in str(error.value) for word in words), error.value


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


def test_a_tenth_is_held_out_by_its_text(sentences):
    data = sentences.data.open("")
    assert data.num_train + data.num_evaluation == 200
    texts, _ = data.held_out.fetch(range(data.num_evaluation))
    assert {split_of(t.decode()) for t in texts} == {"test"}


def test_a_user_s_file(tmp_path):
    rows = [('He said "no", twice', "bad"), ("it's a film\u2019s film", "good")] * 40
    path = tmp_path / "mine.tsv"
    path.write_text("\n".join(map("\t".join, [("review", "stars"), *rows])), encoding="utf-8")
    mine = Text(
        str(path), vocabulary=str(BERT), text_field="review", label_field="stars",
        evaluation_file=str(path),
    )  # fmt: skip
    report = mine.prepare(str(tmp_path))
    assert "80 texts" in report and "0 are cut" in report
    data = mine.open(str(tmp_path))
    assert data.training.fetch([0, 1]) == ([t.encode() for t, _ in rows[:2]], [0, 1])
    assert data.num_classes == 2


@pytest.fixture
def tokenised(monkeypatch):
    """Counts the texts that are tokenised for their lengths, a few at once."""
    counts = []
    real = WordPiece.lengths

    def lengths(self, texts):
        counts.append(len(texts))
        return real(self, texts)

    monkeypatch.setattr(WordPiece, "lengths", lengths)
    monkeypatch.setattr(text_set, "CHUNK", 10)
    return counts


def test_a_file_is_tokenised_only_by_prepare(sentences, tmp_path, tokenised):
    sentences.data.prepare(str(tmp_path))
    assert sum(tokenised) == 200
    tokenised.clear()
    data = sentences.data.open(str(tmp_path))
    batches(data)
    assert not tokenised
    texts, _ = data.training.fetch(range(data.num_train))
    assert data.lengths.tolist() == [len(text.split()) + 2 for text in texts]


@pytest.mark.parametrize("change", ["file", "case", "vocabulary"])
def test_what_changed_since_is_tokenised_again(sentences, tmp_path, tokenised, change):
    sentences.data.prepare(str(tmp_path))
    before = sentences.data.open(str(tmp_path)).digest
    tokenised.clear()
    if change == "file":  # as many texts as before
        path = tmp_path / "train.tsv"
        path.write_text(path.read_text().replace("a ", "a a "))
    elif change == "case":
        (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    else:
        with (tmp_path / "vocab.txt").open("a") as file:
            file.write("\n##a")
    data = sentences.data.open(str(tmp_path))
    assert (data.digest != before) == (change == "file")
    assert sum(tokenised) == data.num_train
    tokenised.clear()
    assert sentences.data.open(str(tmp_path)).digest == data.digest
    assert not tokenised  # the first to open it keeps what it found


def test_one_process_of_a_machine_tokenises_and_all_report_progress(sentences, tmp_path, tokenised):
    first, second = (sentences.data.open(str(tmp_path)) for _ in range(2))
    one, other = first.ready(), second.ready()
    for _ in range(3):
        next(one)
    begun = sum(tokenised)
    assert begun < first.num_train
    for _ in range(3):  # waits, in pieces
        next(other)
    assert sum(tokenised) == begun
    assert len(list(one)) > 3
    assert not list(other)
    assert sum(tokenised) == first.num_train
    assert np.array_equal(first.lengths, second.lengths)


def test_a_folder_that_cannot_be_written_does_not_prevent_training(sentences, tmp_path, tokenised):
    (tmp_path / "text_lengths").write_text("a file where the folder would be")
    data = sentences.data.open(str(tmp_path))
    batches(data)
    assert sum(tokenised) == data.num_train


def test_evaluation_takes_every_text_once(sentences):
    data = sentences.data.open("")
    n = data.num_evaluation
    slices = (range(0, n // 3), range(n // 3, n))
    weights = [w for examples in slices for _, _, w in data.evaluation(4, examples)]
    assert sum(float(tf.reduce_sum(w)) for w in weights) == n


def test_a_run_that_opens_texts_reports_progress(sentences, tmp_path, tokenised, monkeypatch):
    beats = []
    monkeypatch.setattr(heartbeat, "beat", lambda doing, *_: beats.append(sum(tokenised)))
    data = open_data(sentences, str(tmp_path))
    assert len(set(beats)) >= data.num_train // text_set.CHUNK  # between one piece and the next


def test_a_byte_order_mark_and_a_long_text_are_read(tmp_path):
    rows = [f"{'word ' * 40_000}{i}\t{i % 2}" for i in range(30)]
    (tmp_path / "mine.tsv").write_text("\n".join(["text\tlabel", *rows]), encoding="utf-8-sig")
    report = Text(str(tmp_path / "mine.tsv"), vocabulary=str(BERT)).prepare(str(tmp_path))
    assert "2 classes" in report


def test_splits_of_another_kind_of_data_are_refused():
    with pytest.raises(ValueError, match=r"data\.evaluation_file"):
        Text("mine.tsv", train_split="train[:80%]")


@pytest.mark.parametrize(
    ("vocabulary", "words"),
    [("nowhere", ["'nowhere'", "minilm"]), ("", ["vocab.txt"])],
)
def test_a_vocabulary_that_is_none(tmp_path, vocabulary, words):
    (tmp_path / "mine.tsv").write_text("text\tlabel\nfine\tgood\ndull\tbad\n")
    mine = Text(str(tmp_path / "mine.tsv"), vocabulary=vocabulary or str(tmp_path))
    with pytest.raises(InputError) as error:
        mine.open(str(tmp_path))
    assert all(word in str(error.value) for word in words)


def test_the_baseline_stands_beside_the_result(sentences, train):
    result = train(override(sentences, ["data.has_baseline=true", "steps=1"]))
    baseline = result["baseline"]
    assert baseline["examples"] == result["metrics"]["test"]["examples"]
    assert 0 <= baseline["accuracy"] <= 1
    assert sentences.data.open("").evaluation_split == "test"


def test_a_baseline_that_cannot_learn_loses_no_result(sentences):
    data = sentences.data.open("")
    data.training.fetch = lambda ids: ([b"a b" for _ in ids], data.training.labels[: len(ids)])
    assert "vocabulary" in baselines.of_texts(data.training, data.held_out, False)["error"]


def test_an_evaluation_text_without_a_label_is_named(sentences):
    data = sentences.data.open("")
    data.held_out.labels[3] = -1
    with pytest.raises(InputError, match="label -1"):
        list(data.evaluation(4, range(8)))
