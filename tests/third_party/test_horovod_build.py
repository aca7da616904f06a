"""Horovod is built from the source that the patches are for, and a failure says its cause."""

import importlib.util
import subprocess
import sys
import tarfile

import pytest
from ranks import ROOT

FOLDER = ROOT / "third_party/horovod"
pytestmark = pytest.mark.fast


@pytest.fixture
def build():
    spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path):
    """A source package of two files that calls itself Horovod 0.28.1."""
    source = tmp_path / "made/horovod-0.28.1"
    (source / "horovod").mkdir(parents=True)
    (source / "setup.py").write_text("raise RuntimeError('this one does not build')\n")
    (source / "horovod/common.cc").write_text("one\ntwo\nthree\nfour\nfive\nsix\nseven\n")
    path = tmp_path / "horovod-0.28.1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(source, "horovod-0.28.1")
    return path


def run(cache, **environment):
    """Builds as set-up does; its exit code, and the last line of its output."""
    done = subprocess.run(
        [sys.executable, FOLDER / "build.py", cache], capture_output=True, text=True, timeout=120,
        env={"PATH": "/usr/bin:/bin", **environment},
    )  # fmt: skip
    return done.returncode, done.stderr.splitlines()[-1]


def test_another_source_is_refused_in_one_sentence(build, package, tmp_path):
    code, sentence = run(tmp_path, HOROVOD_SOURCE=str(package))
    assert code == 1
    assert sentence.startswith(
        "error: the patches are for the source package of Horovod 0.28.1 with SHA-256 "
        f"{build.SHA256}, but {package} has "
    )
    assert not list(tmp_path.glob("horovod-????????????")), "nothing is kept"
    assert "there is no source package" in run(tmp_path, HOROVOD_SOURCE="/nowhere.tar.gz")[1]


PATCH = """\
Says why.

--- a/horovod/common.cc
+++ b/horovod/common.cc
@@ -2,3 +2,3 @@
 two
-three
+3
 four
"""


def test_patches_are_applied_exactly_or_not_at_all(build, package, tmp_path):
    source, patch = build.unpack(package, tmp_path), tmp_path / "01-three.patch"
    patch.write_text(PATCH)
    build.apply(patch, source)
    assert (source / "horovod/common.cc").read_text() == "one\ntwo\n3\nfour\nfive\nsix\nseven\n"
    patch.write_text(PATCH.replace(" two", " TWO").replace("-three", "-3").replace("+3", "+drei"))
    with pytest.raises(build.BuildError, match=r"^01-three.patch does not fit the source"):
        build.apply(patch, source)
    assert (source / "horovod/common.cc").read_text() == "one\ntwo\n3\nfour\nfive\nsix\nseven\n"


def test_a_failed_build_says_its_cause(build, package, tmp_path):
    source = build.unpack(package, tmp_path)
    with pytest.raises(build.BuildError) as failure:
        build.compile_wheel(source, tmp_path)
    sentence = "Horovod 0.28.1 does not compile: RuntimeError: this one does not build"
    assert str(failure.value) == sentence


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        (
            "[3/9] Building CXX object a.o\nFAILED: a.o\n"
            "/s/mpi_ops.cc:36:10: fatal error: tsl/x.h: No such file or directory\n"
            "ninja: build stopped: subcommand failed.\nsubprocess.CalledProcessError: ...",
            "fatal error: tsl/x.h: No such file or directory",
        ),
        ("c++: fatal error: Killed signal terminated program cc1plus\nRuntimeError: x", "memory"),
        ("CMake Error at CMakeLists.txt:7 (find_package):\n  Could not find NCCL", "find_package"),
        ("/s/a.cc:5:1: error: 'uint8_t' was not declared\nError: y", "'uint8_t' was not declared"),
        ("a.cc: write error: No space left on device", "the disk is full"),
        ("something\nelse", "else"),
    ],
)
def test_the_cause_is_found_in_what_compilers_print(build, output, cause):
    assert cause in build.cause(output.splitlines())


def test_the_wheel_is_kept_by_all_that_it_depends_on(build, tmp_path, monkeypatch):
    for path in FOLDER.glob("*.p*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(build, "PATCHES", tmp_path)
    keys = [build.key()]
    assert build.key() == keys[0]
    monkeypatch.setenv("HOROVOD_GPU_OPERATIONS", "NCCL")
    keys.append(build.key())
    (tmp_path / "99-new.patch").write_text(PATCH)
    keys.append(build.key())
    monkeypatch.setattr(build.importlib.metadata, "version", lambda name: "2.22.0")
    keys.append(build.key())
    assert len(set(keys)) == 4
    (tmp_path / f"horovod-{keys[-1]}").mkdir()
    wheel = tmp_path / f"horovod-{keys[-1]}/horovod-0.28.1+patched.x-cp311-linux.whl"
    wheel.touch()
    assert build.main(tmp_path) == wheel, "what is kept is not built again"
