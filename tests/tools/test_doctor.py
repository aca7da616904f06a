"""The doctor finds what is wrong: each fault is faked, and one run is real."""

import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
from ranks import ROOT, start

from app import errors
from app.launch import private_network
from app.parallel.topology import Topology
from app.tools import doctor
from app.tools.diagnosis import finding, installed, machine, network, trial

GB = machine.GB
PINNED = installed.pinned()
RIGHT = {**PINNED, "horovod": f"{PINNED['horovod']}+patched.01234567"}


def levels(findings):
    return [f.level for f in findings]


def only(findings, level):
    """The one finding that is not ok; it has a fix, and fits into 100 columns."""
    wrong = [f for f in findings if f.level != "ok"]
    assert levels(wrong) == [level], list(map(str, findings))
    assert wrong[0].fix and wrong[0].found
    lines = str(wrong[0]).splitlines()
    assert all(len(line) <= 100 or len(line.split()) == 1 for line in lines), lines
    assert any(line.strip().startswith("fix: ") for line in lines)
    return wrong[0]


# Versions


def test_what_is_pinned_is_right():
    assert set(installed.PACKAGES) <= set(PINNED)
    assert levels(installed.versions(RIGHT, PINNED)) == ["ok"]
    assert installed.pinned(Path("no such file")) == {}


def test_the_tests_run_on_what_is_pinned():
    found = installed.installed()
    assert found["horovod"].startswith("0.28.1+patched."), "built by third_party/horovod/build.py"
    assert found == {name: PINNED[name] for name in installed.PACKAGES} | {
        "horovod": found["horovod"]
    }


@pytest.mark.parametrize(
    ("package", "version", "level", "message"),
    [
        ("numpy", "1.26.4", "warning", "numpy 1.26.4 was not tested"),
        ("keras", "3.0.0", "warning", "keras 3.0.0 was not tested"),
        ("tensorflow", "2.21.1", "warning", "tensorflow 2.21.1 was not tested"),
        ("tensorflow-text", "2.20.1", "problem", "built for another version"),
        ("tensorboard", None, "problem", "tensorboard is not installed"),
        ("protobuf", "5.29.6", "problem", "needs 6.31.1 or newer"),
        ("h5py", "3.16.0", "problem", "one below 3.15"),
        ("horovod", "0.28.1", "problem", "only with the patches of third_party/horovod"),
        ("horovod", "0.28.0+patched.0", "warning", "horovod 0.28.0+patched.0 was not tested"),
        ("horovod", None, "problem", "horovod is not installed"),
    ],
)
def test_a_wrong_version_is_found(package, version, level, message):
    has = {**RIGHT, package: version}
    found = list(installed.versions({k: v for k, v in has.items() if v}, PINNED))
    wrong = only(found, level)
    assert message in wrong.found
    if package != "horovod" and version:
        assert f"{package}=={PINNED[package]}" in wrong.fix
    assert package not in found[-1].found.replace("tensorflow-", "").split()


def test_without_pins_nothing_is_compared():
    assert "nothing to compare" in only(installed.versions(RIGHT, {}), "warning").found


@pytest.mark.parametrize("minor", [10, 11, 12, 13, 14])
def test_python_is_one_that_was_tested(minor):
    assert installed.python((3, minor, 1)).level == ("ok" if minor in (11, 12, 13) else "problem")


# Horovod's build


@pytest.fixture
def fake_horovod(tmp_path, monkeypatch):
    """Puts another Horovod in front of the right one."""

    def make(script):
        package = tmp_path / "horovod"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "tensorflow.py").write_text(script)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return make


BUILT = "gloo_built = lambda: {}\nmpi_built = lambda: False\nnccl_built = lambda: 0\n"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise ImportError('undefined symbol: _ZN10tensorflow')", "undefined symbol"),
        ("import os; os.abort()", "killed by SIGABRT"),
        ("import os; os._exit(3)", "exit code 3"),
        ("import time; time.sleep(60)", "longer than 2 s"),
        (BUILT.format(False), "without Gloo"),
    ],
)
def test_a_horovod_that_cannot_be_used_is_found(fake_horovod, script, message):
    fake_horovod(script)
    limit = 2 if "sleep" in script else 60
    assert message in only(installed.horovod(limit), "problem").found


def test_a_horovod_for_another_tensorflow_is_found(fake_horovod, monkeypatch):
    fake_horovod(BUILT.format(True))
    assert levels(installed.horovod()) == ["ok"]
    assert installed.built_for() == PINNED["tensorflow"]
    monkeypatch.setattr(installed, "built_for", lambda: "2.17.0")
    assert "built for TensorFlow 2.17.0, but 2.21.0" in only(installed.horovod(), "problem").found


def test_gpus_without_nccl_are_reported(fake_horovod, monkeypatch):
    fake_horovod(BUILT.format(True))
    monkeypatch.setattr(installed, "has_gpus", lambda: True)
    assert "HOROVOD_GPU_OPERATIONS=NCCL" in only(installed.horovod(), "warning").fix


# Cores, memory, disk


@pytest.mark.parametrize(("np", "has", "level"), [(2, 2, "ok"), (2, 9, "ok"), (3, 2, "warning")])
def test_cores(np, has, level):
    found = machine.cores(np, has)
    assert found.level == level and str(has) in found.found
    assert (found.fix == f"set NP={has}") == (level == "warning")


@pytest.mark.parametrize(
    ("np", "available", "level"),
    [
        (2, 8, "ok"),
        (2, 1.5, "warning"),
        (2, 0.9, "problem"),
        (1, 0.4, "problem"),
        (64, 31, "problem"),
    ],
)
def test_memory(np, available, level):
    found = machine.memory(np, available * GB)
    assert found.level == level
    if level != "ok":
        only([found], level)
        assert ("NP=" in found.fix) == (np > 1)
    if np == 64:
        assert "NP=31" in found.fix


def test_a_container_has_less_memory_than_its_machine(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "LIMITS", (str(limit),))
    whole = machine.available_memory()
    assert whole > 10**7
    limit.write_text("max\n")
    assert machine.available_memory() > 10**7
    limit.write_text("10000000\n")
    assert machine.available_memory() == 10**7
    only([machine.memory(2)], "problem")


@pytest.mark.parametrize(("free", "level"), [(0.5, "problem"), (2, "warning"), (50, "ok")])
def test_disk(tmp_path, monkeypatch, free, level):
    paths = []

    def usage(path):
        paths.append(path)
        return namedtuple("Usage", "free")(free * GB)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    found = machine.disk("disk, data", "--data_dir", tmp_path / "not" / "yet")
    assert found.level == level and paths == [tmp_path]
    if level != "ok":
        assert "--data_dir" in only([found], level).fix


def test_a_disk_that_cannot_be_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", failing(errno.EACCES))
    assert (
        "Permission denied" in only([machine.disk("disk", "--workdir", tmp_path)], "problem").found
    )


# The workdir


def failing(number):
    def fail(*arguments, **named):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_sound_workdir_is_left_as_it_was(tmp_path):
    for path in (tmp_path, tmp_path / "not" / "yet"):
        assert machine.workdir(path).level == "ok"
        assert not list(tmp_path.iterdir())


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    assert "Not a directory" in only([machine.workdir(tmp_path / "file" / "run")], "problem").found


def test_a_workdir_without_permission():
    """As nobody, if the tests are root's, who may write everywhere."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        own = os.geteuid()
        if own == 0:
            os.seteuid(65534)
        try:
            wrong = only([machine.workdir(Path(folder))], "problem")
        finally:
            os.seteuid(own)
        assert "Permission denied" in wrong.found


@pytest.mark.parametrize(
    ("where", "name", "number", "message"),
    [
        (Path, "write_bytes", errno.ENOSPC, "cannot write"),
        (os, "fsync", errno.EIO, "cannot fsync"),
        (Path, "replace", errno.EPERM, "cannot rename"),
        (fcntl, "flock", errno.ENOLCK, "cannot flock"),
    ],
)
def test_a_workdir_that_lacks_something(tmp_path, monkeypatch, where, name, number, message):
    monkeypatch.setattr(where, name, failing(number))
    wrong = only([machine.workdir(tmp_path)], "problem")
    assert message in wrong.found and os.strerror(number) in wrong.found
    assert not list(tmp_path.iterdir())


def test_locks_that_hold_nobody_off(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *arguments: None)
    assert "two jobs" in only([machine.workdir(tmp_path)], "problem").found


def test_a_slow_disk_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "SLOW", 0.0)
    assert "fsync takes" in only([machine.workdir(tmp_path)], "warning").found


# The network


def test_loopback(monkeypatch):
    assert network.loopback().level == "ok"
    with monkeypatch.context() as patch:
        patch.setattr(network, "_addresses", lambda name: ["10.0.0.1"])
        assert "10.0.0.1" in only([network.loopback()], "problem").found
    monkeypatch.setattr(socket, "getaddrinfo", failing(errno.ENOENT))
    assert "does not resolve" in only([network.loopback()], "problem").found


@pytest.mark.parametrize(("is_allowed", "level"), [(True, "ok"), (False, "warning")])
def test_a_private_network(monkeypatch, is_allowed, level):
    monkeypatch.setattr(private_network, "is_allowed", lambda: is_allowed)
    assert network.isolation().level == level


@pytest.fixture
def fake_ssh(tmp_path, monkeypatch):
    """Names that begin with a to d resolve; ssh answers as the name says."""
    script = tmp_path / "ssh"
    script.write_text(
        """#!/bin/sh
[ "$*" = "-o BatchMode=yes -o ConnectTimeout=5 -- $6 true" ] || exit 99
case $6 in
  a*) ;;
  b*) echo "Permission denied (publickey,password)." >&2; exit 255 ;;
  c*) echo "Host key verification failed." >&2; exit 255 ;;
  d*) exec sleep 60 ;;
esac
"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    resolve = socket.getaddrinfo

    def fake(name, *others):
        return resolve("127.0.0.1" if name[0] in "abcd" else f"{name}.invalid", *others)

    monkeypatch.setattr(socket, "getaddrinfo", fake)


def test_hosts_that_answer(fake_ssh):
    (found,) = network.reachable(4, "a1:2,a2:2")
    assert found.level == "ok" and "a1, a2" in found.found
    assert not list(network.reachable(2, ""))
    assert not list(network.reachable(2, "localhost:2"))


@pytest.mark.parametrize(
    ("hosts", "level", "message", "fix"),
    [
        ("a:1,b:1", "problem", "ssh b fails: Permission denied", "ssh-copy-id b"),
        ("a:1,c:1", "warning", "does not know the key of c", "ssh c"),
        ("a:1,d:1", "problem", "ssh d does not answer in 5 s", "ssh d true"),
        ("a:1,x:1", "problem", "the name x does not resolve", "/etc/hosts"),
        ("a:1,x..y:1", "problem", "the name x..y does not resolve", "/etc/hosts"),
        ("a:2,a2", "problem", "not 'a2'", "a:4,b:4"),
        ("a:1", "problem", "has 1 slots for 2 processes", "NP=1"),
    ],
)
def test_hosts_that_cannot_be_used(fake_ssh, monkeypatch, hosts, level, message, fix):
    if "d:" in hosts:
        monkeypatch.setattr(network, "SSH_SECONDS", 5)
    wrong = only(network.reachable(2, hosts), level)
    assert message in wrong.found and fix in wrong.fix


def test_ssh_itself_may_be_missing(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "not installed" in only(network.reachable(1, "a:1"), "problem").found


def test_ranks_of_this_machine():
    own = socket.gethostname()
    assert network.local_ranks(4, "") == network.local_ranks(4, "localhost:2") == 4
    assert network.local_ranks(5, f"a:2,{own}:2,b:8") == 2
    assert network.local_ranks(3, f"a:2,{own}:2") == 1
    assert network.local_ranks(2, f"a:2,{own}:2") == 0


# The all-reduce


def test_a_wrong_sum_is_counted(joined, monkeypatch):
    from app.tools import all_reduce

    result = all_reduce.reduce(Topology())
    assert result["wrong"] == 0 and result["ranks"] == 1
    right = all_reduce.replicas.all_reduce

    def wrong(tensor, name, *others):
        return right(tensor, name, *others) + (1 if name == "timed4096" else 0)

    monkeypatch.setattr(all_reduce.replicas, "all_reduce", wrong)
    assert all_reduce.reduce(Topology())["wrong"] == 11 * 1024  # every number of every round


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"wrong": 7.0}, "7 numbers"), ({"ranks": 1.0}, "1 ranks connected, not 2")],
)
def test_a_wrong_result_is_a_problem(changed, message):
    right = {"ranks": 2.0, "wrong": 0.0, "4096": 0.001, "16777216": 0.1}
    assert (
        "1.00 ms" in trial.examine(2, right).found and "0.17 GB/s" in trial.examine(2, right).found
    )
    assert message in only([trial.examine(2, {**right, **changed})], "problem").found


# Calls the trial, or all of the doctor, with another script as rank.
TRIAL = """
import functools, sys
from pathlib import Path
from app.tools import doctor
from app.launch.launcher import Start
from app.tools.diagnosis import installed, trial
script, limit, is_whole = sys.argv[1], float(sys.argv[2]), len(sys.argv) > 3
one = functools.partial(trial.all_reduce, command=[sys.executable, script], limit=limit)
if is_whole:
    installed.horovod, trial.all_reduce = lambda: [], one
    doctor.main(Start(2), Path(), Path())
print(one(Start(2)))
"""
RANK = """
import os, signal, sys, time
from app.recovery import heartbeat
heartbeat.start()
rank = os.environ["HOROVOD_RANK"]
heartbeat.beat("reducing", rank=int(rank))
def result(wrong):
    line = '{"ranks": 2.0, "wrong": %s, "4096": 0.001, "16777216": 0.1}'
    if rank == "0":
        print(line % wrong, flush=True)
    open(os.environ["SCALEPROOF_EXIT_FILE"], "a").write(f"{os.getpid()} 0\\n")
"""


def left(script):
    """Processes that run a script still."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(script) in (p.info["cmdline"] or [])]


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("result(0.0)", "ok      all-reduce      2 ranks, sums right"),
        ("result(5.0)", "problem all-reduce      wrong sums: 5 numbers"),
        ("time.sleep(600)", "no result in 20 s"),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank == '1' else time.sleep(600)", "SIGKILL"),
        ("raise ValueError('no such thing')", "ValueError: no such thing"),
        ("sys.exit(0)", "exited without an error message"),
    ],
)
def test_what_ranks_do_is_reported_and_none_is_left(tmp_path, script, message):
    path = tmp_path / "rank.py"
    path.write_text(RANK + script)
    limit = "20" if script.startswith("time") else "120"
    done = start([sys.executable, "-c", TRIAL, str(path), limit], tmp_path, TMPDIR=str(tmp_path))
    assert message in " ".join(done.stdout.split()) or message in done.stdout, (
        done.stdout + done.stderr
    )
    assert ("fix: " in done.stdout) == ("sums right" not in message)
    assert not left(path) and not list(tmp_path.glob("scaleproof-*"))


@pytest.mark.ranks
def test_a_doctor_that_is_stopped_leaves_no_process(tmp_path):
    path = tmp_path / "rank.py"
    path.write_text(RANK + "time.sleep(600)")
    env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "NP": "2", "HOSTS": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", TRIAL, str(path), "120", "whole"], cwd=tmp_path, env=env,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while len(list(tmp_path.glob("scaleproof-*/*.beat"))) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        assert len(list(tmp_path.glob("scaleproof-*/*.beat"))) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert not left(path) and not list(tmp_path.glob("scaleproof-*"))


# The whole


def test_a_problem_is_an_error_and_a_warning_is_none(capsys):
    fine = [finding.ok("cores", "2"), finding.warning("memory", "1 GB", "buy some")]
    doctor.report(fine)
    assert "no problem, 1 warning" in capsys.readouterr().out
    bad = [finding.problem("disk", "full", "empty it")] * 2
    with pytest.raises(errors.UserError, match=r"has 2 \(disk\)") as error:
        doctor.report([*fine, *bad])
    assert error.value.exit_code == 2
    assert capsys.readouterr().out.count("fix: empty it") == 2


def test_long_texts_are_wrapped_and_paths_are_not():
    path = "/" + "long-folder/" * 12
    lines = str(finding.problem("disk", f"{'word ' * 60}{path}", "do " * 60)).splitlines()
    assert path in [line.strip() for line in lines]
    assert all(len(line) <= 100 for line in lines if path not in line) and len(lines) > 5


WHOLE = """
import sys
from app.__main__ import main
code = main(["doctor", *sys.argv[1:]])
assert not {"tensorflow", "keras", "horovod"} & set(sys.modules)
sys.exit(code)
"""


@pytest.mark.ranks
def test_the_doctor_on_this_machine(tmp_path):
    command = [sys.executable, "-c", WHOLE, "--workdir=run"]
    done = start(command, tmp_path, 500, NP="2", HOSTS="", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 ranks, sums right: 4 KiB in " in done.stdout and "Gloo yes" in done.stdout
    assert "training can start on this machine" in done.stdout and not done.stderr
    assert all(len(line) <= 100 for line in done.stdout.splitlines())
    assert not list(tmp_path.iterdir())


def test_a_sick_machine_is_exit_code_2(tmp_path, fake_horovod):
    fake_horovod("raise ImportError('undefined symbol')")
    (tmp_path / "file").touch()
    command = [sys.executable, "-c", WHOLE, "--workdir=file/run"]
    variables = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "NP": "2", "HOSTS": ""}
    done = start(command, tmp_path, **variables)
    assert done.returncode == errors.USAGE, done.stderr
    assert "2 (workdir; horovod)" in done.stderr and "undefined symbol" in done.stdout
    assert "not tried while there is a problem" in done.stdout


def test_flags_that_the_doctor_cannot_follow(tmp_path):
    for arguments, variables in ((["--elastic"], {}), ([], {"NP": "none"})):
        done = start([sys.executable, "-c", WHOLE, *arguments], tmp_path, **variables)
        assert done.returncode == errors.USAGE and "error: " in done.stderr and not done.stdout
