"""Splits without labels, as competitions have them: never taken unless they are named."""

import dataclasses
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from app.inference import predict
from app.training.data import open_data
from input import InputError
from input.images import Images
from input.text import Text


class Hidden(tfds.core.GeneratorBasedBuilder):
    """Images and texts whose test has no labels, and whose training set lacks one."""

    VERSION = tfds.core.Version("1.0.0")
    name = "scaleproof_hidden"

    def _info(self):
        label = tfds.features.ClassLabel(names=["bad", "good"])
        image = tfds.features.Image(shape=(8, 8, 3), encoding_format="png")
        features = {"image": image, "text": tfds.features.Text(), "label": label}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {
            name: self._generate_examples(name) for name in ("train", "holes", "test", "validation")
        }

    def _generate_examples(self, split):
        random = np.random.default_rng(len(split))
        for i in range(40):
            label = -1 if split == "test" or (split == "holes" and i == 17) else i % 2
            image = random.integers(0, 256, [8, 8, 3], np.uint8)
            yield i, {"image": image, "text": f"a b {i}", "label": label}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


def images(**changes):
    return Images("scaleproof_hidden", size=8, **changes)


def texts(folder, **changes):
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b"]))
    return Text("scaleproof_hidden", vocabulary=str(folder), **changes)


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_a_split_with_labels_is_taken_and_its_classes_are_shown(data_dir, tmp_path, kind):
    config = images() if kind == "images" else texts(tmp_path)
    report = config.prepare(data_dir)
    assert config.open(data_dir).evaluation_split == "validation"
    assert ["0", "bad", "20", "20"] in [line.split() for line in report.splitlines()]


def test_counts_that_cannot_be_kept_are_shown(data_dir, tmp_path):
    images().prepare(data_dir)
    shutil.copytree(f"{data_dir}/scaleproof_hidden", tmp_path / "scaleproof_hidden")
    (tmp_path / "label_counts").write_text("a file where the folder would be")
    report = images().prepare(str(tmp_path))
    assert ["1", "good", "20", "20"] in [line.split() for line in report.splitlines()]


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_one_without_is_refused_where_it_is_named(data_dir, tmp_path, tiny, kind):
    named = {"evaluation_split": "test"}
    config = images(**named) if kind == "images" else texts(tmp_path, **named)
    images().prepare(data_dir)
    with pytest.raises(InputError, match="label -1 is not in"):
        config.prepare(data_dir)
    experiment = dataclasses.replace(tiny, data=config)
    with pytest.raises(Exception, match="split 'test' has no labels") as refused:
        open_data(experiment, data_dir)
    assert refused.value.exit_code == 3
    # But it can be predicted.
    data = images().open(data_dir)
    job = predict.Job("split:test", tmp_path, None, None, 1, "best", 4, 1, None)
    items = predict.open_items(job, dataclasses.replace(tiny, data=images()), data, data_dir)
    assert len(items) == 40 and items.fetch(3)[1] is None


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_a_label_that_is_missing_does_not_train(data_dir, tmp_path, kind):
    named = {"train_split": "holes"}
    config = images(**named) if kind == "images" else texts(tmp_path, **named)
    images().prepare(data_dir)
    with pytest.raises(InputError, match=r"record \d+ of .*label -1 is not in"):
        config.prepare(data_dir)
    data = config.open(data_dir)
    with pytest.raises(InputError, match="label -1"):
        list(data.train(0, 4, lambda k: k, 10))


def test_no_split_to_evaluate_says_so(data_dir, monkeypatch):
    images().prepare(data_dir)
    monkeypatch.setattr("input.datasets.EVALUATION_SPLITS", ("test",))
    with pytest.raises(InputError, match=r"no labels in test\): set data\.evaluation_split"):
        images().open(data_dir)
