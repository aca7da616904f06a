"""Setting a run up, on one process: what is refused, what must agree, and who has the workdir."""

import contextlib
import dataclasses
import json

import pytest

from app.cli.overrides import override
from app.config import Layout
from app.errors import CheckpointError, DataError, UsageError
from app.parallel.topology import Topology
from app.recovery import lock
from app.training import setup
from app.training.setup import Run

pytestmark = pytest.mark.fast


def open_run(experiment, layout=None):
    return setup.open_run(experiment, layout or Layout(), Topology(), "")


def test_a_run_is_opened_on_one_device(linear):
    found = open_run(linear)
    assert found.experiment is linear and found.total == 3 and found.mirror is None
    assert found.data.num_train == 40 and len(found.state.placement.sizes) == 1
    epochs = dataclasses.replace(linear, steps=None, epochs=2.1)
    assert open_run(epochs).total == 11  # 2.1 x 40 / 8, rounded up


def test_a_model_of_several_stages_is_cut(linear):
    found = open_run(linear, Layout(stages=2, cut=(1, 1)))
    assert [len(part.blocks) for part in found.state.parts] == [1, 1]
    assert len({part.device for part in found.state.parts}) == 2


@pytest.mark.parametrize(
    ("settings", "layout", "error", "message"),
    [
        (["micro_batch=3"], Layout(), UsageError, "multiple of micro_batch"),
        (["global_batch=48"], Layout(), DataError, "40 examples, fewer than one global batch"),
        ([], Layout(stages=3), UsageError, "need at least 3 blocks"),
        ([], Layout(cut=(3,)), UsageError, "must add up to the model's 2 blocks"),
    ],
)
def test_what_does_not_fit_is_refused_on_every_rank(linear, settings, layout, error, message):
    with pytest.raises(error, match=message) as raised:
        open_run(override(linear, settings), layout)
    assert raised.value.everywhere


def test_ranks_must_agree_on_data_versions_and_variables(linear):
    facts = open_run(linear).facts()
    assert facts == json.loads(json.dumps(facts))
    assert facts["variables"]["weights/head/kernel"] == "float32 [192, 3]"
    assert {"tensorflow", "horovod"} <= facts["versions"].keys()
    wide = dataclasses.replace(linear, data=dataclasses.replace(linear.data, size=16))
    other = open_run(wide).facts()
    assert other["variables"]["weights/head/kernel"] == "float32 [768, 3]"
    assert other["data"]["digest"] != facts["data"]["digest"] or other != facts


@pytest.fixture
def claim(linear, tmp_path):
    """Claims the workdir as a rank; returns the warnings."""
    found = open_run(linear)

    def call(stack, rank=0, folder="run", exact=False):
        layout, run = Layout(exact=exact), Run(tmp_path / folder, "", "linear", ("steps=3",))
        return setup.claim_workdir(found, layout, Topology(rank, 2), run, stack)

    return call


def test_rank_0_writes_what_the_run_is(claim, tmp_path):
    with contextlib.ExitStack() as stack:
        assert claim(stack, rank=1) == [] and not (tmp_path / "run").exists()
        assert claim(stack) == []
        config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["reference"] == "linear" and config["set"] == ["steps=3"]
    assert config["experiment"]["global_batch"] == 8
    assert {"versions", "kernels", "meaning"} <= config.keys()


def test_a_workdir_is_one_jobs(claim, tmp_path):
    with contextlib.ExitStack() as stack:
        claim(stack)
        with contextlib.ExitStack() as other, pytest.raises(UsageError, match="another job"):
            claim(other)
    with lock.held(tmp_path / "run"):
        pass  # released with the stack


def test_a_workdir_that_cannot_be_written_is_named(claim, tmp_path):
    (tmp_path / "file").write_text("")
    with contextlib.ExitStack() as stack, pytest.raises(UsageError, match=r"cannot write to .*run"):
        claim(stack, folder="file/run")


def test_checkpoints_of_another_meaning_are_refused(claim, tmp_path):
    with contextlib.ExitStack() as stack:
        claim(stack)
    path = tmp_path / "run/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"meaning": {"classes": ["a", "b", "c"]}}))
    with contextlib.ExitStack() as stack:
        claim(stack)  # nothing was learned yet
    path.write_text(json.dumps(config | {"meaning": {"classes": ["a", "b", "c"]}}))
    (tmp_path / "run/checkpoints/step-00000001").mkdir(parents=True)
    with contextlib.ExitStack() as stack, pytest.raises(CheckpointError, match="0 'a'"):
        claim(stack)
