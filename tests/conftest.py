"""TensorFlow on the CPU, quiet, before anything imports it."""

import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Jobs of tests share few cores: Horovod looks for work every 5 ms, not every one.
os.environ.setdefault("HOROVOD_CYCLE_TIME", "5")

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
from pixels import Pixels
from shallow import Linear, Shallow, Short

from app.cli import validation
from app.config import Experiment, Layout, Optimization
from app.optimizers import AdamW
from app.recovery import preemption
from app.schedules import Constant
from input.text import Text
from models.transformer import Transformer


@pytest.fixture
def tiny() -> Experiment:
    """Six micro-batches of four small synthetic images, a narrow and short ResNet."""
    return Experiment(
        model=Short(),
        data=Pixels(size=16, synthetic_examples=101, synthetic_classes=7),
        global_batch=24,
        micro_batch=4,
        steps=4,
        optimization=Optimization(warmup_epochs=0, schedule=Constant()),
    )


@pytest.fixture
def shallow(tiny) -> Experiment:
    """The images with a model of four blocks."""
    return dataclasses.replace(tiny, model=Shallow())


@pytest.fixture
def linear() -> Experiment:
    """Two micro-batches of four smaller images, and a model of one layer."""
    return Experiment(
        model=Linear(),
        data=Pixels(size=8, synthetic_examples=40, synthetic_classes=3),
        global_batch=8,
        micro_batch=4,
        steps=3,
        optimization=Optimization(warmup_epochs=0),
    )


@pytest.fixture
def stop(monkeypatch):
    """Set, it is as if SIGTERM had come."""
    event = threading.Event()
    monkeypatch.setattr(preemption, "_requested", event)
    return event


@pytest.fixture
def words(tmp_path) -> Experiment:
    """Sentences of one length of a batch, and one layer."""
    sentences = sentences_in(tmp_path, longest=6)
    return dataclasses.replace(sentences, model=dataclasses.replace(sentences.model, layers=1))


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", *"abcdefghij"]


@pytest.fixture
def sentences(tmp_path) -> Experiment:
    """Eight micro-batches of four short sentences of letters, a narrow transformer."""
    return sentences_in(tmp_path)


def write_sentences(folder: Path, longest: int = 19) -> None:
    """Writes labelled texts of so many letters at most, and their vocabulary, in a folder."""
    random = np.random.default_rng(0)
    rows = ["text\tlabel"]
    for i in range(200):
        letters = random.choice(list("abcdefghij"), random.integers(1, longest + 1))
        rows.append(f"{' '.join(letters)} {['bad', 'good'][i % 2]}\t{i % 2}")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    (folder / "train.tsv").write_text("\n".join(rows))


def sentences_in(folder: Path, longest: int = 19) -> Experiment:
    """The experiment, with its data in a folder: texts of so many letters at most.

    A step is compiled for each length of a batch, a multiple of 8: few are sooner there.
    """
    write_sentences(folder, longest)
    return Experiment(
        model=Transformer(layers=4, width=16, heads=2, vocabulary=len(VOCABULARY)),
        data=Text(str(folder / "train.tsv"), vocabulary=str(folder), has_baseline=False),
        global_batch=32,
        micro_batch=4,
        steps=3,
        optimization=Optimization(
            optimizer=AdamW(), learning_rate=0.01, reference_batch=32, warmup_epochs=0,
            clip_norm=1.0, ema_decay=0.9,
        ),
    )  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def joined():
    """This process as a job of its own, with devices for four stages."""
    import tensorflow as tf

    from app.training import setup

    four = [tf.config.LogicalDeviceConfiguration()] * 4
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], four)

    topology, _ = setup.join(Layout())
    return topology


@pytest.fixture
def train(tmp_path, joined):
    """Trains an experiment in this process; returns its result."""
    from app.training import trainer

    def run(experiment: Experiment, name: str = "run", layout: Layout | None = None, **options):
        layout = layout or Layout()
        validation.validate(experiment, layout)
        options = trainer.Run(tmp_path / name, str(tmp_path / "data"), **options)
        return trainer.train(experiment, layout, joined, options)

    return run
