"""TensorFlow on the CPU, quiet, before anything imports it."""

import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest

from app import config
from app.config import Experiment, Layout, Optimization
from input.images import Images
from models.resnet import ResNet


@pytest.fixture
def tiny() -> Experiment:
    """Six micro-batches of four small synthetic images, a narrow ResNet-18."""
    return Experiment(
        model=ResNet(depth=18, width=4),
        data=Images("synthetic", size=16, synthetic_examples=101, synthetic_classes=7),
        global_batch=24,
        micro_batch=4,
        steps=4,
        optimization=Optimization(warmup_epochs=0, schedule="constant"),
    )


@pytest.fixture(scope="session", autouse=True)
def joined():
    """This process as a job of its own."""
    from app.training import loop

    where, _ = loop.join(Layout())
    return where


@pytest.fixture
def train(tmp_path, joined):
    """Trains an experiment in this process; returns its result."""
    from app.training import loop

    def run(experiment: Experiment, name: str = "run", **options):
        config.validate(experiment, Layout())
        options = loop.Run(tmp_path / name, str(tmp_path / "data"), **options)
        return loop.train(experiment, Layout(), joined, options)

    return run
