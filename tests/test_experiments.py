import dataclasses

import pytest

from app import experiments


def shrink(experiment):
    """The same number of micro-batches and the same recipe, on few small images."""
    data = dataclasses.replace(
        experiment.data, dataset="synthetic", size=32, synthetic_classes=10, synthetic_examples=2048
    )
    model = dataclasses.replace(experiment.model, width=2)
    return dataclasses.replace(
        experiment, model=model, data=data, micro_batch=2,
        global_batch=2 * experiment.num_micro_batches, steps=2, epochs=None,
    )  # fmt: skip


@pytest.mark.parametrize("name", list(experiments.named()))
def test_every_experiment_trains_two_steps(name, train):
    experiment = experiments.load(name)
    result = train(shrink(experiment))
    assert result["steps"] == 2
    assert result["metrics"]["test"]["examples"] == 2048


@pytest.mark.parametrize("name", list(experiments.named()))
def test_every_experiment_has_a_card(name):
    card = experiments.named()[name].__doc__ or ""
    assert len(card.splitlines()) > 2


def test_the_published_case_is_128_processes():
    experiment = experiments.resnet50_imagenet()
    assert experiment.global_batch == 8192
    assert experiment.num_micro_batches == 128
