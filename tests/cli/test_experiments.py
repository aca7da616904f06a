import dataclasses

import pytest
from shallow import Short

from app import experiments
from input.tables import Table
from input.text import Text


def shrink(experiment, folder):
    """The same number of micro-batches and the same recipe, on few small examples: a batch."""
    examples = max(64, 2 * experiment.num_micro_batches)
    if isinstance(experiment.data, Text):
        rows = [
            f"W{i % 90} {'good' * (i % 2)} w{i % 7} w3 w4 w5 w6 w7\t{i % 2}\t{i % 5}"
            for i in range(examples)
        ]
        for name in ("train", "test"):
            (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel\trating", *rows]))
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "w", *(f"##{i}" for i in range(9))]
        words.append("[MASK]")
        (folder / "vocab.txt").write_text("\n".join(words))
        data = dataclasses.replace(
            experiment.data, dataset=str(folder / "train.tsv"), vocabulary=str(folder),
            evaluation_file=str(folder / "test.tsv"), evaluation_split=None,
        )  # fmt: skip
        model = dataclasses.replace(
            experiment.model, layers=2, width=16, heads=2, vocabulary=16, init_from=None
        )
    elif isinstance(experiment.data, Table):
        data, model = experiment.data, experiment.model
    else:
        data = dataclasses.replace(
            experiment.data, dataset="synthetic", size=32, synthetic_classes=10,
            synthetic_examples=examples,
        )  # fmt: skip
        model = Short(**{**vars(experiment.model), "depth": 18, "width": 2})
    return dataclasses.replace(
        experiment, model=model, data=data, micro_batch=2,
        global_batch=2 * experiment.num_micro_batches, steps=2, epochs=None,
    )  # fmt: skip


@pytest.mark.parametrize("name", list(experiments.named()))
def test_every_experiment_trains_two_steps(name, train, tmp_path):
    experiment = experiments.load(name)
    result = train(shrink(experiment, tmp_path))
    assert result["steps"] == 2
    found = result["metrics"]["test"]
    assert experiment.objective.best in found
    if isinstance(experiment.data, Table):
        assert found["examples"] == 88
    elif experiment.objective.is_of_tokens:
        assert found["tokens"] > 0
    else:
        assert found["examples"] == max(64, 2 * experiment.num_micro_batches)


@pytest.mark.parametrize("name", list(experiments.named()))
def test_every_experiment_has_a_card(name):
    card = experiments.named()[name].__doc__ or ""
    assert len(card.splitlines()) > 2


def test_the_published_case_is_128_processes():
    experiment = experiments.resnet50_imagenet()
    assert experiment.global_batch == 8192
    assert experiment.num_micro_batches == 128
