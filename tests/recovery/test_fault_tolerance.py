"""Real jobs that lose ranks, hang, are stopped, shrink and grow: the same model comes out."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from ranks import ROOT, SHORT, TINY, app, forked

from app.errors import DIVERGED, UsageError
from app.recovery import heartbeat
from app.tools import chaos, faults

pytestmark = [pytest.mark.ranks, pytest.mark.faults]
STEPS = 60
# The tiny experiment with a model that is compiled soon. Each micro-batch comes PAUSE seconds late,
# so that a job is caught in time on any machine; the second rank does as FAULT says as it reads its
# 100th.
FAULTY = """
import dataclasses, os, signal, time
from dataclasses import dataclass
import numpy as np
from tests.shallow import Dense

LAYERS = []

def flip():
    weight = LAYERS[-1].trainable_variables[0]
    bits = weight.numpy().view(np.uint32)
    bits.flat[3] ^= 1 << 7
    weight.assign(bits.view(np.float32))

def loop_for_ever():
    while True:
        time.sleep(0.01)

FAULTS = {"flip": flip, "loop": loop_for_ever, "exit": lambda: os._exit(0),
          "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV), "none": lambda: None}

@dataclass(frozen=True)
class Remembered(Dense):
    def blocks(self, num_classes):
        LAYERS[:] = super().blocks(num_classes)
        return list(LAYERS)

@dataclass(frozen=True)
class Faulty(Pixels):
    def open(self, data_dir):
        data = super().open(data_dir)
        train, fault = data.train, FAULTS[os.environ.get("FAULT", "none")]
        def faulty(*args):
            for k, batch in enumerate(train(*args)):
                time.sleep(float(os.environ.get("PAUSE", 0)))
                if k == 100 and os.environ.get("HOROVOD_RANK") == "1":
                    fault()
                yield batch
        data.train = faulty
        return data

def faulty():
    e = tiny()
    return dataclasses.replace(e, model=Remembered(), data=Faulty(**vars(e.data)))
"""


KILLED_LATE = """
@dataclass(frozen=True)
class Late(Pixels):
    def open(self, data_dir):
        data = super().open(data_dir)
        def baseline():
            time.sleep(4)
            os.kill(os.getpid(), signal.SIGKILL)
        data.baseline = baseline
        return data

def late():
    e = tiny()
    return dataclasses.replace(e, data=Late(**vars(e.data)))
"""


@pytest.fixture
def user(tmp_path):
    (tmp_path / "mine.py").write_text(TINY + FAULTY)
    return tmp_path


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """Digests of that experiment's weights, undisturbed, for any number of steps."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "mine.py").write_text(TINY + FAULTY)
    known: dict[int, str] = {}

    def digest(steps: int) -> str:
        if steps not in known:
            done = forked(1, folder, *flags(folder / str(steps), steps))
            assert done.returncode == 0, done.stderr[-2000:]
            known[steps] = result(folder / str(steps))["weights_sha256"]
        return known[steps]

    return digest


def flags(workdir: Path, steps: int = STEPS) -> list[str]:
    given = ["train", "--experiment=mine.py:faulty", f"--workdir={workdir}", "--exact"]
    return [*given, f"--set=steps={steps}"]


def result(workdir: Path) -> dict:
    return json.loads((workdir / "result.json").read_text())


class Job:
    """`app launch train`, and a look at its ranks."""

    def __init__(self, np: int, folder: Path, arguments: list[str], **variables: str) -> None:
        self.folder = folder
        env = os.environ | {"NP": str(np), "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
        env |= {"CUDA_VISIBLE_DEVICES": "", "PAUSE": "0.01", **variables}
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        self.process = subprocess.Popen(
            ["python", "-m", "app", "launch", *arguments], cwd=folder, env=env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def rank(self, number: int, step: int, limit: float = 240) -> psutil.Process:
        """The living process of a rank, once it has done `step` steps."""
        end = time.monotonic() + limit
        while time.monotonic() < end and self.process.poll() is None:
            for folder in self.folder.glob("scaleproof-*"):
                for beat in heartbeat.read(folder):
                    is_there = psutil.pid_exists(beat.pid) and beat.rank == number
                    if is_there and beat.step >= step:
                        return psutil.Process(beat.pid)
            time.sleep(0.05)
        raise AssertionError(f"rank {number} did not come to step {step}: {self.end()}")

    def end(self, limit: float = 400) -> tuple[int, str]:
        """Exit code and output; nothing of it is left."""
        timer = threading.Timer(limit, self.process.kill)
        timer.start()
        out, _ = self.process.communicate()
        timer.cancel()
        end = time.monotonic() + 12
        while (left := self._left()) and time.monotonic() < end:
            time.sleep(0.1)
        assert not left, f"left behind: {left}"
        return self.process.returncode, out

    def _left(self) -> list[str]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cwd() == str(self.folder) and process.pid != os.getpid():
                    found.append(" ".join(process.cmdline())[:80])
        return found


def test_a_killed_rank_changes_no_bit(user, alone):
    job = Job(2, user, [*flags(user / "run"), "--checkpoint_every=10"])
    job.rank(1, step=25).kill()
    code, out = job.end()
    assert code == 0, out
    assert re.search(r"rank 1 .* after step \d+, was killed by SIGKILL", out)
    assert "from step 20" in out or "from step 30" in out
    assert result(user / "run")["weights_sha256"] == alone(STEPS)


def test_elastic_ranks_die_leave_and_join(user, alone):
    """2 hosts, then 1, 3 and 2, then a kill; every example as often as if nothing happened."""
    steps = 130
    hosts, script = user / "hosts", user / "hosts.sh"
    script.write_text(f"#!/bin/sh\ncat {hosts}\n")
    script.chmod(0o700)

    def set_hosts(count):
        hosts.with_suffix(".new").write_text("".join(f"127.0.0.{i + 1}:1\n" for i in range(count)))
        hosts.with_suffix(".new").replace(hosts)

    def sessions():
        path = user / "run/recovery.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [e for e in map(json.loads, lines) if e["event"] == "session"]

    def wait_for(ranks):
        end = time.monotonic() + 180
        while not sessions() or sessions()[-1]["ranks"] != ranks:
            assert time.monotonic() < end and job.process.poll() is None, job.end()
            time.sleep(0.05)
        job.rank(0, sessions()[-1]["first"] + 5)

    set_hosts(2)
    given = [*flags(user / "run", steps), "--elastic", "--log_examples"]
    secret = {"SHOP_API_KEY": "canary-7151"}
    # NP is no number to wait for: whoever is there begins.
    job = Job(3, user, [*given, f"--host_discovery_script={script}"], PAUSE="0.04", **secret)
    wait_for(2)
    assert_closed(job, user, "canary-7151")
    for ranks in (1, 3, 2):
        set_hosts(ranks)
        wait_for(ranks)
    before = len(sessions())
    job.rank(1, 0).kill()
    wait_for(1)
    wait_for(2)  # the host is taken back after a while
    code, out = job.end()
    assert code == 0, out
    assert "was killed by SIGKILL; the others go on" in out
    assert result(user / "run")["weights_sha256"] == alone(steps)
    assert len(sessions()) >= before + 2
    assert net_examples(user / "run") == net_examples_of(range(steps))


def net_examples(workdir: Path) -> dict[int, list]:
    """For each step the examples of the session that did it last."""
    steps: dict[int, dict[int, tuple]] = {}
    for path in workdir.glob("examples-*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            places = steps.setdefault(line["step"], {})
            kept = places.get(line["micro_batch"], (0, []))
            places[line["micro_batch"]] = max(kept, (line["session"], line["examples"]))
    return {s: [places[p][1] for p in sorted(places)] for s, places in sorted(steps.items())}


def net_examples_of(steps: range) -> dict[int, list]:
    from input.order import Order

    order = Order(0, 101, 4)
    return {s + 1: [order.examples(8 * s + v).tolist() for v in range(8)] for s in steps}


def assert_closed(job: Job, user: Path, secret: str) -> None:
    """Nobody outside reaches a port of the job, and `ps` shows no secret."""
    rank = job.rank(0, 0)
    lines = Path(f"/proc/{rank.pid}/net/tcp").read_text().splitlines()[1:]
    ports = {int(line.split()[1].split(":")[1], 16) for line in lines if line.split()[3] == "0A"}
    assert len(ports) >= 3, "the driver's, the ranks', and their notifications'"
    canary = user / "canary"
    pickle = b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."  # touches a file
    addresses = {a.address for each in psutil.net_if_addrs().values() for a in each
                 if a.family == socket.AF_INET}  # fmt: skip
    for address in addresses:
        for port in ports:
            url = f"http://{address}:{port}/worker_addresses/127.0.0.1:0"
            with pytest.raises(OSError):
                urllib.request.urlopen(urllib.request.Request(url, pickle, method="PUT"), timeout=2)
    assert not canary.exists()
    assert os.stat(f"/proc/{rank.pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
    assert rank.environ()["SHOP_API_KEY"] == secret  # what reads the data may need it
    shown = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    assert any("HOROVOD_RANK" in line for line in shown)
    assert not any(secret in line for line in shown)


def test_sigterm_saves_and_the_same_command_goes_on(user, alone):
    arguments = flags(user / "run")
    job = Job(2, user, arguments)
    rank = job.rank(1, step=10)
    asked = max(b.step for f in user.glob("scaleproof-*") for b in heartbeat.read(f))
    rank.terminate()  # one rank alone is told: all stop after the same step
    code, out = job.end()
    assert code == 42, out
    (step,) = re.findall(r"stopped after step (\d+) of 60 and saved", out)
    assert asked <= int(step) < 60
    saved = max((user / "run/checkpoints").glob("step-*/manifest.json"))
    assert json.loads(saved.read_text())["content"]["step"] == int(step)
    done = forked(1, user, *arguments)
    assert done.returncode == 0 and f"steps {int(step) + 1} to 60" in done.stdout, done.stderr
    assert result(user / "run")["weights_sha256"] == alone(60)


def test_a_stopped_rank_is_noticed_and_named(user):
    fast = {"HOROVOD_GLOO_TIMEOUT_SECONDS": "5"}
    job = Job(2, user, [*flags(user / "run", 500), "--max_restarts=0"], **fast)
    rank = job.rank(1, step=10)
    rank.suspend()
    begin = time.monotonic()
    code, out = job.end()
    assert code == 7 and "rank 1" in out and "is stopped (SIGSTOP)" in out
    assert time.monotonic() - begin < 60  # not the 300 s of --hang_seconds


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        ("loop", 7, "wait for rank 1 (reading"),
        ("exit", 7, "exited without an error message"),
        ("crash", 7, "was killed by SIGSEGV"),
    ],
)
def test_a_fault_of_one_rank_is_named(user, fault, code, told):
    limits = ["--hang_seconds=20", "--max_restarts=0"]
    job = Job(2, user, [*flags(user / "run"), *limits], FAULT=fault)
    found, out = job.end()
    assert found == code and told in out, out
    if fault == "loop":
        report = next((user / "run").glob("hang-*.txt")).read_text()
        assert "in loop_for_ever" in report and "rank 0 (pid" in report


def test_a_flipped_bit_is_undone_by_starting_again(user, alone):
    """The restart finds no such rank 1: the experiment's fault strikes at its 100th micro-batch."""
    limits = ["--compare_every=5", "--checkpoint_every=5"]
    job = Job(2, user, [*flags(user / "run"), *limits], FAULT="flip")
    code, out = job.end()
    assert code == 0 and "Restart 1 of 3" in out, out
    assert re.search(r"after step \d+ the ranks hold other values of weights/", out)
    assert result(user / "run")["weights_sha256"] == alone(STEPS)


def test_no_process_is_left_when_the_launcher_is_killed(user):
    job = Job(2, user, flags(user / "run", 5000))
    job.rank(1, step=5)
    job.process.send_signal(signal.SIGKILL)
    assert job.end()[0] == -signal.SIGKILL


def test_a_rank_killed_at_the_baseline_does_not_undo_the_run(user):
    """The other one has left by then, as the run is done."""
    with (user / "mine.py").open("a") as file:
        file.write(KILLED_LATE)
    command = ["train", "--experiment=mine.py:late", f"--workdir={user / 'run'}", "--set=steps=4"]
    code, out = Job(2, user, command).end()
    assert code == 0, out
    assert "rank 0 " in out and "was killed by SIGKILL; the run is done and written" in out, out
    assert result(user / "run")["finished"] and result(user / "run")["baseline"] is None


def test_two_jobs_and_one_workdir(user):
    job = Job(1, user, flags(user / "run", 5000))
    job.rank(0, step=5)
    done = forked(1, user, *flags(user / "run", 5000))
    assert done.returncode == 2 and "is used by another job (process" in done.stderr
    job.process.terminate()
    assert job.end()[0] == 42


def test_chaos_counts_what_it_did_and_compares(user):
    (user / "mine.py").write_text(SHORT)  # whose writes last long enough to be hit
    arguments = ["--experiment=mine.py:tiny", "--set=steps=500", "--set=global_batch=8"]
    arguments += ["--checkpoint_every=10", "--workdir=chaos", "--chaos_seed=3"]  # write comes first
    arguments += ["--kinds=kill,write,damage", "--faults=3", "--between_seconds=2"]
    done = app(1, user, "chaos", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((user / "chaos/chaos.json").read_text())
    assert figures["faults"] == figures["recovered"] == 3 == sum(figures["kinds"].values())
    assert figures["runs_with_the_same_weights"] == figures["runs"]
    assert figures["kinds"].get("write", 0) >= figures["writes_torn"] >= 0
    assert figures["recovery_seconds"]["worst"] >= figures["recovery_seconds"]["median"] > 0
    assert 0 < figures["goodput"] < 1
    assert "the same weights" in done.stdout


@pytest.mark.parametrize("found", ["a", "b"])
def test_chaos_that_can_inject_no_fault_ends(tmp_path, monkeypatch, found):
    whole = {"weights_sha256": "a", "steps": 1, "examples_per_second": 1.0,
             "experiment": {"global_batch": 1}}  # fmt: skip
    (tmp_path / "undisturbed").mkdir()
    (tmp_path / "undisturbed/result.json").write_text(json.dumps(whole))

    class Quick:
        def __init__(self, command, folder, plan, tally):
            self.folder, tally.seconds = folder, tally.seconds + 1

        def run(self):
            return whole | {"weights_sha256": found}

    monkeypatch.setattr(chaos, "DisturbedRun", Quick)
    plan = faults.Plan(faults=1, between=1.0, kinds=("write",), seed=0, ranks=1)
    if found == "b":  # without a fault: the model itself differs
        assert chaos.main(["true"], tmp_path, plan) == DIVERGED
    else:
        with pytest.raises(UsageError, match="no fault could be injected in 3 runs"):
            chaos.main(["true"], tmp_path, plan)
    assert json.loads((tmp_path / "chaos.json").read_text())["runs"] == 3
