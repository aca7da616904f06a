"""Data sets whose targets are no single class: ratings of texts, attributes of digits."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from pictures import everything

from input import InputError
from input.datasets import digits
from input.images import Images
from input.text import Text

pytestmark = pytest.mark.fast

BERT = Path(__file__).parents[1] / "fixtures" / "bert"


def test_attributes_of_digits_are_those_of_the_digit(tmp_path):
    config = Images("digits_attributes", size=8)
    report = config.prepare(str(tmp_path))
    data = config.open(str(tmp_path))
    Images("digits", size=8).prepare(str(tmp_path))
    plain = Images("digits", size=8).open(str(tmp_path))
    assert data.classes == tuple(digits.ATTRIBUTES) and len(data.classes) == data.num_classes == 6
    assert data.target_spec == tf.TensorSpec([None, 6])
    x, y, _ = everything(data.evaluation(60, range(360)))
    same, classes, _ = everything(plain.evaluation(60, range(360)))
    assert np.array_equal(x, same)
    wanted = [[d in some for some in digits.ATTRIBUTES.values()] for d in classes.argmax(1)]
    assert np.array_equal(y, wanted)
    assert f"{np.mean(wanted, 0)[1]:.1%}" in report  # the share of primes
    (_, trained, ids), *_ = data.train(4, 8, lambda k: k, 1)
    (_, labels, theirs), *_ = plain.train(4, 8, lambda k: k, 1)
    assert np.array_equal(ids, theirs)
    assert np.array_equal(trained[:, 0], labels.numpy().argmax(1) % 2 == 0)


def archive(folder: Path) -> None:
    """Writes what the source package of vaderSentiment has."""
    import io
    import tarfile

    from input.datasets import movie_sentences

    lines = [f"{i}\t{(i % 9 - 4) / 2}\tsentence number {i}" for i in range(60)]
    content = "\n".join(lines).encode()
    place = folder / "downloads" / movie_sentences.PACKAGE.inside
    place.mkdir(parents=True)
    with tarfile.open(place / movie_sentences.ARCHIVE, "w:gz") as made:
        member = tarfile.TarInfo(movie_sentences.RATINGS)
        member.size = len(content)
        made.addfile(member, io.BytesIO(content))


def test_ratings_of_movie_sentences(tmp_path):
    archive(tmp_path)
    config = Text("movie_sentences", target="rating", vocabulary=str(BERT))
    report = config.prepare(str(tmp_path))
    assert "targets from -2 to 2" in report
    data = config.open(str(tmp_path))
    assert (data.num_classes, data.classes, data.target_spec) == (0, (), tf.TensorSpec([None, 1]))
    texts, ratings = data.training.fetch(range(data.num_train))
    numbers = [int(text.split()[-1]) for text in texts]
    assert [float(r) for r in ratings] == [(i % 9 - 4) / 2 for i in numbers]
    assert 0 in ratings and 0 < data.baseline()["mae"] < 4
    for _, y, ids in data.train(1, 4, lambda k: k, 3):
        assert y[:, 0].numpy().tolist() == [float(ratings[i]) for i in ids.numpy()]
    whole = Text("movie_sentences", vocabulary=str(BERT))
    whole.prepare(str(tmp_path))
    sentences = set(whole.open(str(tmp_path)).training.fetch(range(9))[0])
    assert sentences < set(texts)  # the same split


def test_numbers_of_a_file_of_texts(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text("text,stars\n" + "\n".join(f"text {i},{i / 2}" for i in range(20)))
    config = Text(str(path), vocabulary=str(BERT), target="stars")
    assert "mean" in config.prepare(str(tmp_path))
    data = config.open(str(tmp_path))
    (_, y, _), *_ = data.evaluation(4, range(4))
    assert y.numpy().tolist() == [[2], [4.5], [7], [9.5]]
    path.write_text(path.read_text().replace("3.5", "many"))
    with pytest.raises(InputError, match=r"reviews\.csv, line 9: column 'stars' is 'many', no num"):
        config.prepare(str(tmp_path))


def test_what_a_target_excludes():
    with pytest.raises(ValueError, match="text_field and target must differ"):
        Text("x.csv", target="text")
    with pytest.raises(ValueError, match=r"target of numbers \(stars\) has no classes"):
        Text("x.csv", target="stars", classes=("a", "b"))
