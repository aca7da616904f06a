"""What keeps a run alive, with processes that are no ranks: quick, and without TensorFlow."""

import contextlib
import errno
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from app import errors
from app.cli import flags
from app.commands import train
from app.errors import UsageError
from app.launch import private_network, processes
from app.launch.job import End, Job
from app.launch.output import ENDED, LOST
from app.launch.supervisor import Limits
from app.recovery import atomic_file, heartbeat, lock, manifest
from app.recovery.manifest import DamageError

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]

# A rank in five lines: it beats, does what the test says in its n-th attempt, and leaves.
RANK = """
import os, signal, sys, time
from app.recovery import heartbeat
heartbeat.start()
attempt = len(os.listdir("attempts")) + 1
open(f"attempts/{attempt}", "w").close()
def leave(code):
    open(os.environ["SCALEPROOF_EXIT_FILE"], "a").write(f"{os.getpid()} {code}\\n")
def checkpoint(step):
    os.makedirs(f"run/checkpoints/step-{step:08d}", exist_ok=True)
    open(f"run/checkpoints/step-{step:08d}/manifest.json", "w").close()
heartbeat.beat("computing", 5)
"""
SUPERVISE = """
import sys
from pathlib import Path
from unittest.mock import Mock
from app.launch.job import Job
from app.launch.supervisor import Limits, Supervisor
limits = Limits(restarts=2, back_off=0.1, hang=float(sys.argv[1]), grace=3)
make = lambda: Job([sys.executable, "rank.py"])
sys.exit(Supervisor(make, Path("run"), limits).run())
"""


class Supervised:
    """A supervisor over one rank of a script."""

    def __init__(self, folder: Path, script: str, hang: float = 60) -> None:
        self.folder = folder
        (folder / "attempts").mkdir()
        (folder / "run").mkdir()
        (folder / "rank.py").write_text(RANK + textwrap.dedent(script))
        env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISE, str(hang)], cwd=folder, env=env, text=True,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def wait_for_rank(self) -> psutil.Process:
        """The first rank that has a step behind it."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for folder in self.folder.glob("scaleproof-*"):
                for beat in heartbeat.read(folder):
                    if beat.step:
                        return psutil.Process(beat.pid)
            time.sleep(0.02)
        raise AssertionError("no rank came")

    def end(self) -> tuple[int, str]:
        try:
            _, printed = self.process.communicate(timeout=120)
        finally:
            self.process.kill()
        found = psutil.process_iter(["cmdline", "cwd"])
        left = [p for p in found if "rank.py" in (p.info["cmdline"] or ())]
        assert not [p for p in left if p.info["cwd"] == str(self.folder)], "an orphan"
        assert not list(self.folder.glob("scaleproof-*"))
        return self.process.returncode, printed

    @property
    def attempts(self) -> int:
        return len(list((self.folder / "attempts").iterdir()))


@pytest.mark.parametrize(
    ("death", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
        ("os.abort()", "was killed by SIGABRT"),
        ("os._exit(0)", "exited without an error message"),
        ("os._exit(9)", "exited with code 9"),
        ("leave(7)", "lost its peers"),
        ("leave(6)", "a rank failed, as shown above"),
    ],
)
def test_whatever_a_rank_dies_of_the_job_goes_on(tmp_path, death, message):
    job = Supervised(tmp_path, f"if attempt == 1: {death}\nelse: leave(0)")
    code, text = job.end()
    assert code == errors.DONE and job.attempts == 2, text
    assert message in text and "Restart 1 of 2" in text


REAPED = """
import subprocess, sys
import psutil
from app.launch import processes

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
kill = psutil.Process.kill

def kill_and_reap(process):
    kill(process)
    child.wait()

psutil.Process.kill = kill_and_reap
processes.kill_descendants()
sys.exit(child.returncode != -9)
"""


def test_a_process_that_ends_while_it_is_killed_is_no_error():
    """In a process of its own: the descendants of this one are other tests' too."""
    subprocess.run([sys.executable, "-c", REAPED], cwd=ROOT, check=True, timeout=50)


def test_the_flags_of_train_limit_the_supervisor(tmp_path, monkeypatch):
    monkeypatch.setenv("NP", "1")
    monkeypatch.setattr(train, "Supervisor", Mock(return_value=Mock(run=lambda: 7)))
    given = ["--max_restarts=5", "--hang_seconds=77", "--grace_seconds=8"]
    given += ["--experiment=resnet50_synthetic", f"--workdir={tmp_path}"]
    flags.parse(train.FLAGS, "train", given)
    assert train.launch(train.FLAGS, []) == 7
    _, folder, limits = train.Supervisor.call_args.args
    assert folder == tmp_path and limits == Limits(restarts=5, hang=77, grace=8)


@pytest.mark.parametrize("code", [errors.USAGE, errors.DATA, errors.CHECKPOINT, errors.NUMBERS])
def test_an_error_that_would_come_again_ends_the_job(tmp_path, code):
    job = Supervised(tmp_path, f"leave({code})")
    assert job.end()[0] == code and job.attempts == 1


def test_a_bug_before_the_first_step_is_not_tried_again(tmp_path):
    job = Supervised(tmp_path, "heartbeat.beat('building', 0); leave(1)")
    assert job.end()[0] == errors.BUG and job.attempts == 1


def test_restarts_without_progress_are_limited(tmp_path):
    job = Supervised(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    code, text = job.end()
    assert code == errors.LOST_PEER and job.attempts == 3  # and two restarts
    assert "Given up after 2 restarts" in text


def test_replicas_that_differ_again_and_again_are_given_up(tmp_path):
    job = Supervised(tmp_path, f"leave({errors.DIVERGED})")
    assert job.end()[0] == errors.DIVERGED and job.attempts == 3


def test_what_a_launcher_prints_of_servers_and_workers_is_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"{LOST}worker 1 was killed", "a word of the chief", f"{ENDED}parameter server 0 died"]
    prints = "; ".join(f"print({line!r}, file=sys.stderr)" for line in lines)
    script = f"import sys, time; {prints}; sys.stderr.flush(); time.sleep(0.5); sys.exit(1)"
    job = Job([], [sys.executable, "-c", script])
    try:
        end = time.monotonic() + 60
        while not (losses := job.losses()):
            assert time.monotonic() < end
        assert losses == ["worker 1 was killed"] and not job.losses()
        job.process.wait(20)
        job.output.join()
        assert job.end() == End(errors.LOST_PEER, "parameter server 0 died")
    finally:
        job.kill()


def test_a_new_checkpoint_counts_as_progress(tmp_path):
    job = Supervised(
        tmp_path,
        "checkpoint(attempt)\nleave(0) if attempt == 6 else os.kill(os.getpid(), signal.SIGKILL)",
    )
    assert job.end()[0] == errors.DONE and job.attempts == 6


def test_progress_is_seen_beside_what_is_no_checkpoint(tmp_path):
    """Copies, and what a run has set aside."""
    job = Supervised(tmp_path, "checkpoint(attempt); leave(0) if attempt == 5 else os.abort()")
    for name in ("step-00000099.before", "damaged-step-00000099"):
        (tmp_path / "run/checkpoints" / name).mkdir(parents=True)
        (tmp_path / "run/checkpoints" / name / manifest.NAME).touch()
    assert job.end()[0] == errors.DONE and job.attempts == 5


def test_checkpoints_that_cannot_be_listed_do_not_end_the_supervisor(tmp_path):
    job = Supervised(tmp_path, "leave(0) if attempt == 2 else os.abort()")
    (tmp_path / "run/checkpoints").write_text("no folder")
    code, text = job.end()
    assert code == errors.DONE and job.attempts == 2, text


def test_a_hang_is_ended_and_its_stacks_are_written(tmp_path):
    script = """
    def loop_for_ever():
        while True: time.sleep(0.01)
    heartbeat.beat("reading", 7)
    leave(0) if attempt == 2 else loop_for_ever()
    """
    job = Supervised(tmp_path, script, hang=1)
    code, text = job.end()
    assert code == errors.DONE and "rank 0 (reading after step 7)" in text
    report = next((tmp_path / "run").glob("hang-*.txt")).read_text()
    assert "in loop_for_ever" in report and "reading" in report


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(9)"])
def test_a_rank_lost_at_the_baseline_of_a_run_that_is_written_is_no_failure(tmp_path, how):
    job = Supervised(tmp_path, f"heartbeat.beat(heartbeat.BASELINE, 7); {how}")
    code, text = job.end()
    assert code == errors.DONE and job.attempts == 1, text
    assert "rank 0" in text and "the run is done and written, without its baseline" in text


def test_stopped_at_the_baseline_is_stopped(tmp_path):
    job = Supervised(tmp_path, "heartbeat.beat(heartbeat.BASELINE, 7); leave(42)")
    assert job.end()[0] == errors.PREEMPTED and job.attempts == 1


def test_a_rank_that_waits_for_another_is_not_named(monkeypatch):
    pid = os.getpid()
    waits = heartbeat.Beat(pid, 0, 25, heartbeat.FINISHING, 1.0)
    hangs = heartbeat.Beat(pid, 1, 25, "reading", 2.0)  # began to read when the other was done
    monkeypatch.setattr(Job, "living", lambda job: [waits, hangs])
    job = Job([], ["sleep", "60"])
    try:
        assert job.suspect() == hangs
    finally:
        job.kill()


def test_a_stopped_rank_is_named(tmp_path):
    script = "leave(0) if attempt == 2 else os.kill(os.getpid(), signal.SIGSTOP)"
    job = Supervised(tmp_path, script, hang=1)
    assert job.end()[0] == errors.DONE
    assert "stopped" in next((tmp_path / "run").glob("hang-*.txt")).read_text()


def test_sigterm_is_passed_on_and_is_no_reason_to_start_again(tmp_path):
    script = """
    signal.signal(signal.SIGTERM, lambda *_: (leave(42), os._exit(42)))
    time.sleep(30)
    """
    job = Supervised(tmp_path, script)
    job.wait_for_rank()
    time.sleep(0.3)
    job.process.terminate()
    assert job.end()[0] == errors.PREEMPTED and job.attempts == 1


def test_a_rank_that_does_not_stop_is_killed_after_its_grace(tmp_path):
    job = Supervised(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)")
    job.wait_for_rank()
    time.sleep(0.3)
    job.process.terminate()
    code, text = job.end()
    assert code == errors.LOST_PEER and "--grace_seconds" in text


def test_no_orphan_when_the_supervisor_is_killed(tmp_path):
    job = Supervised(tmp_path, "time.sleep(60)")
    rank = job.wait_for_rank()
    job.process.kill()
    job.process.communicate()
    rank.wait(10)
    assert not rank.is_running()


def test_a_beat_costs_microseconds(tmp_path, monkeypatch):
    monkeypatch.setenv(heartbeat.FOLDER, str(tmp_path))
    monkeypatch.setattr(heartbeat, "_writer", None)
    heartbeat.start()
    heartbeat.beat("computing", 12, rank=3)
    heartbeat.beat("reading")
    (beat,) = heartbeat.read(tmp_path)
    assert (beat.rank, beat.step, beat.doing, beat.pid) == (3, 12, "reading", os.getpid())
    assert 0 <= beat.age < 5
    assert "test_a_beat" in heartbeat.stacks(tmp_path, [beat.pid])[os.getpid()]


def test_one_job_a_workdir(tmp_path):
    hold = "import sys; from pathlib import Path; from app.recovery import lock\n"
    hold += "with lock.held(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(UsageError, match=f"process {other.pid}"), lock.held(tmp_path):
        pass
    other.kill()  # the lock of a killed process is free
    other.wait()
    with lock.held(tmp_path):
        pass


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "step-00000007"
    folder.mkdir()
    (folder / "state.index").write_bytes(b"index")
    (folder / "state.data-00000-of-00001").write_bytes(bytes(1000))
    manifest.write(folder, {"step": 7, "metrics": {"accuracy": 0.5}})
    return folder


def test_a_manifest_finds_every_change_of_a_byte(checkpoint):
    content = manifest.read(checkpoint)
    manifest.verify(checkpoint, content)
    data = checkpoint / "state.data-00000-of-00001"
    for place in (0, 500, 999):
        changed = bytearray(1000)
        changed[place] ^= 1
        data.write_bytes(changed)
        with pytest.raises(DamageError, match="data-00000-of-00001 does not have"):
            manifest.verify(checkpoint, content)
    for damage, message in ((b"", "0 bytes, not 1000"), (bytes(999), "999 bytes")):
        data.write_bytes(damage)
        with pytest.raises(DamageError, match=message):
            manifest.verify(checkpoint, content)
    data.unlink()
    with pytest.raises(DamageError, match="is missing"):
        manifest.verify(checkpoint, content)


def test_a_manifest_knows_itself(checkpoint):
    path = checkpoint / manifest.NAME
    text = path.read_text()
    path.write_text(text.replace("0.5", "0.6"))
    with pytest.raises(DamageError, match="own checksum"):
        manifest.read(checkpoint)
    for broken in ("", text[:50], "[]", "{}"):
        path.write_text(broken)
        with pytest.raises(DamageError, match=r"is damaged: .* is no manifest"):
            manifest.read(checkpoint)
    path.write_text(text)
    moved = checkpoint.rename(checkpoint.parent / "step-00000009")
    with pytest.raises(DamageError, match="of step 7"):
        manifest.read(moved)


def python(code: str, *launcher: str) -> list[str]:
    """What a Python program prints."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [*launcher, sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    assert not done.returncode, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(
    not private_network.is_allowed(), reason="this kernel allows no private network"
)
def test_a_private_network_has_its_own_loopback():
    inside = (
        "from app.launch import private_network; from app.parallel import network; import socket\n"
    )
    inside += "private_network.bring_up(['127.0.0.1', '127.0.0.2'])\n"
    inside += "server = socket.create_server(('127.0.0.2', 0))\n"
    inside += "socket.create_connection(server.getsockname())\n"
    inside += "print(len(network.reachable_interfaces()), server.getsockname()[0])\n"
    assert python(inside, *private_network.INSIDE) == ["0", "127.0.0.2"]


def test_without_one_horovod_listens_on_loopback_alone():
    """The rendezvous that all ranks ask, and the service that tells of changes."""
    listening = """
from app.launch import horovodrun
horovodrun.listen_on_loopback()
from horovod.runner.common.util import network, secret
from horovod.runner.http.http_server import RendezvousServer
server = RendezvousServer()
server.start()
service = network.BasicService("test", secret.make_secret_key(), None)
for opened in (server._httpd.socket, service._server.socket):
    print(opened.getsockname()[0])
"""
    assert python(listening) == ["127.0.0.1", "127.0.0.1"]


def test_a_bound_command_dies_with_the_process_that_started_it():
    """Even if that is killed, and with threads; its pid is the command's."""
    code = """
import os, subprocess, sys, threading, time
from app.launch import processes
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
child = subprocess.Popen(processes.bound(["sleep", "60"]))
while "sleep" not in open(f"/proc/{child.pid}/comm").read():
    time.sleep(0.01)
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, timeout=60)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(10)


def test_a_bound_command_that_does_not_exist_is_named():
    done = subprocess.run(processes.bound(["no-such-command"]), capture_output=True, text=True)
    assert done.returncode == 1 and "cannot run no-such-command" in done.stderr


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    atomic_file.write_text(path, "größe")
    with pytest.raises(OSError, match="No space"):
        atomic_file.write(path, failing_chunks())
    assert path.read_text(encoding="utf-8") == "größe"
    atomic_file.write(path, [b"a", b"b"])
    assert path.read_bytes() == b"ab" and list(tmp_path.iterdir()) == [path]


def failing_chunks() -> Iterator[bytes]:
    yield b"half"
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
