"""What a run leaves at its end, whatever comes in between."""

import contextlib
import dataclasses
import json
import threading
import time
from types import SimpleNamespace

import pytest
from pixels import Pixels

from app.cli.overrides import override
from app.errors import PREEMPTED, PreemptedError
from app.recovery import heartbeat, manifest
from app.reporting.clock import Clock
from app.strategies.elastic import Commit
from app.training import evaluation
from app.training.checkpoint import Checkpoints
from app.training.state import State
from app.training.trainer import Trainer


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "run"


def preempted(train, experiment, workdir, **options):
    """Trains until it is stopped; returns the step that it says, and the result before it."""
    path = workdir / "result.json"
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(PreemptedError, match=r"stopped after step \d of 4 and saved: ") as raised:
        train(experiment, **options)
    assert raised.value.exit_code == PREEMPTED
    assert raised.value.everywhere and raised.value.speaker  # one message, on every rank's behalf
    assert (path.read_bytes() if path.exists() else None) == before
    return int(str(raised.value).split()[3])


@pytest.mark.parametrize("last", [2, 4])
def test_stopped_in_the_last_step(shallow, train, workdir, stop, monkeypatch, last):
    train(shallow, stop_at_step=1)
    advance = Trainer.advance

    def stop_in(trainer, s):
        advance(trainer, s)
        if s + 1 == last:
            stop.set()

    monkeypatch.setattr(Trainer, "advance", stop_in)
    assert preempted(train, shallow, workdir, stop_at_step=last) == last
    assert manifest.steps(workdir / "checkpoints")[-1] == last
    stop.clear()
    result = train(shallow)
    assert result["finished"] and result["metrics"]["test"]["examples"] == 101


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("is_finished", [False, True])
def test_stopped_while_it_is_evaluated(
    shallow, train, workdir, stop, monkeypatch, which, is_finished
):
    """In the weights' evaluation, or in that of their averages; for the first time, or again."""
    shallow = override(shallow, ["optimization.ema_decay=0.9"])
    if is_finished:
        train(shallow)
    call, count = evaluation.Evaluator.__call__, []

    def stop_in(evaluator):
        count.append(1)
        if len(count) == which:
            stop.set()
        return call(evaluator)

    monkeypatch.setattr(evaluation.Evaluator, "__call__", stop_in)
    assert preempted(train, shallow, workdir) == 4
    stop.clear()
    result = train(shallow)
    assert result["finished"] and set(result["metrics"]) == {"test", "test_average"}


BASELINE = [lambda: None]


@dataclasses.dataclass(frozen=True)
class Compared(Pixels):
    """Images with a simple model beside them: whatever a test has put there."""

    def open(self, data_dir):
        data = super().open(data_dir)
        data.baseline = lambda: BASELINE[0]()
        return data


@pytest.fixture
def compared(shallow, monkeypatch):
    """The experiment; its baseline is what is assigned to `BASELINE[0]`."""
    monkeypatch.setattr("test_result.BASELINE", [None])
    return dataclasses.replace(shallow, data=Compared(**vars(shallow.data)))


def read(workdir):
    return json.loads((workdir / "result.json").read_text())


def test_the_result_is_written_before_the_baseline(compared, train, workdir):
    found = {"name": "guess", "accuracy": 0.25}
    before = []

    def baseline():
        before.append(read(workdir))
        return found

    BASELINE[0] = baseline
    result = train(compared)
    assert result["baseline"] == found and read(workdir) == result
    assert before == [result | {"baseline": None}] and result["finished"]


@pytest.mark.parametrize("error", [MemoryError("no room"), SystemExit(3)])
def test_a_baseline_that_fails_is_said_so(compared, train, workdir, capfd, error):
    def baseline():
        raise error

    BASELINE[0] = baseline
    result = train(compared)
    message = f"{type(error).__name__}: {error}"
    assert result["baseline"] == {"name": "baseline", "error": message}
    assert result["finished"] and read(workdir) == result
    assert f"(baseline: {message})" in capfd.readouterr().out


def test_a_baseline_may_take_longer_than_a_hang(compared, train, workdir, tmp_path, monkeypatch):
    monkeypatch.setenv(heartbeat.FOLDER, str(tmp_path))
    monkeypatch.setattr(heartbeat, "_writer", None)
    heartbeat.start()
    seen = set()

    def baseline():
        end = time.monotonic() + 60
        while len(seen) < 4 and time.monotonic() < end:
            (beat,) = heartbeat.read(tmp_path)
            seen.add((beat.doing, beat.time))
            time.sleep(0.01)

    BASELINE[0] = baseline
    train(compared)
    assert len({at for doing, at in seen if doing == heartbeat.BASELINE}) >= 3


def test_stopped_at_the_baseline_the_result_is_there(compared, train, workdir, stop):
    release = threading.Event()

    def baseline():
        stop.set()
        release.wait(60)

    BASELINE[0] = baseline
    with pytest.raises(PreemptedError, match="the run is done and its result is written"):
        train(compared)
    release.set()
    assert read(workdir)["finished"] and read(workdir)["baseline"] is None


STEP, EVALUATION, SET_UP = 1, 10, 1000  # seconds


@pytest.fixture
def seconds(monkeypatch):
    """Makes steps and evaluations take so many of the run's seconds, and everything else none."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("app.reporting.clock.time", SimpleNamespace(monotonic=lambda: clock.now))

    def lasting(owner, name, taken):
        operation = getattr(owner, name)

        def call(*args, **kwargs):
            clock.now += taken
            return operation(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    lasting(Trainer, "compute", STEP)
    lasting(Trainer, "evaluate", EVALUATION)
    lasting(Checkpoints, "restore", SET_UP)
    return clock


def test_seconds_and_speed_are_those_of_all_parts(shallow, train, workdir, seconds):
    first = train(shallow, stop_at_step=2)
    assert first["seconds"] == 2 * STEP + EVALUATION
    second = train(shallow)
    assert second["seconds"] == 4 * STEP + 2 * EVALUATION
    assert second["examples_per_second"] == pytest.approx(24 / STEP, rel=0.005)
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    assert [e["seconds"] for e in lines if e["event"] == "train"][-1] == 4 * STEP
    again = train(shallow)  # only evaluated
    assert again["seconds"] == second["seconds"]
    assert again["examples_per_second"] == second["examples_per_second"]


def test_what_a_dying_attempt_lost_is_counted_once(shallow, train, seconds, monkeypatch):
    class DiedError(Exception):
        pass

    advance = Trainer.advance

    def dying(trainer, s):
        if s == 3:
            raise DiedError
        advance(trainer, s)

    with monkeypatch.context() as patch, pytest.raises(DiedError):
        patch.setattr(Trainer, "advance", dying)
        train(shallow, checkpoint_every=2)
    result = train(shallow)
    assert result["seconds"] == 4 * STEP + EVALUATION
    assert result["examples_per_second"] == pytest.approx(24 / STEP, rel=0.005)


def test_stopped_before_its_evaluation_a_run_counts_that_later(
    shallow, train, workdir, seconds, stop, monkeypatch
):
    save = Checkpoints.save

    def stopping(*args):
        stop.set()
        return save(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stopping)
        with contextlib.suppress(PreemptedError):
            train(shallow, checkpoint_every=3)
    stop.clear()
    assert train(shallow)["seconds"] == 4 * STEP + EVALUATION


def test_a_checkpoint_of_an_earlier_version_counts_nothing(shallow, train, workdir):
    train(shallow)
    folder = manifest.folder_of(workdir / "checkpoints", 4)
    content = manifest.read(folder)
    del content["counted"], content["files"], content["format"]
    manifest.write(folder, content)
    again = train(shallow)
    assert again["examples_per_second"] is None and again["finished"]


def test_elastic_ranks_go_back_to_the_seconds_of_their_commit(shallow, joined, seconds, tmp_path):
    data = shallow.data.open("")
    state, clock = State(shallow, data.input_spec, data.num_classes), Clock()
    commit = Commit(state, clock)
    clock.begin()
    seconds.now += 7
    commit.take(5)
    counted = clock.counted()
    seconds.now += 3  # of steps that are lost with a peer, and of meeting again
    assert commit.sync(Checkpoints(tmp_path, state, joined, 1, {})) == 5
    assert clock.counted() == counted and clock.seconds == 7
