"""Horovod's own operations under this TensorFlow, on 1 and 3 ranks.

One job for each number of ranks runs all checks of collectives.py, and its test lists all that
failed: a test for each check would start the job again in every pytest worker. Three ranks have
process sets of one and of two beside that of all.
"""

import os
import sys

import pytest
import ranks

pytestmark = pytest.mark.ranks


def run(*beginnings):
    """On a rank."""
    import collectives

    return collectives.run(*beginnings)


def called(np, folder, function, *arguments):
    """What every rank found, and what failed on any of them."""
    found = ranks.call(np, folder, function, *arguments)
    return found, [failure for one in found for failure in one["failures"]]


def test_every_operation_gives_what_numpy_does(tmp_path):
    found, failures = called(3, tmp_path, run)
    assert not failures, "\n" + "\n".join(failures)
    assert min(one["checks"] for one in found) > 400
    facts = found[0]["facts"]
    # What exchange.py and docs/update_rules.md rely on, of Horovod built with Gloo and no MPI.
    assert {fact for name, fact in facts.items() if "bfloat16" in name} == {"refused"}
    assert facts["adasum"].startswith("refused") and facts["barrier"].startswith("not offered")


def test_the_script_needs_nothing_of_this_project(tmp_path):
    """On one rank, as in an environment that has TensorFlow and Horovod only."""
    script = ranks.ROOT / "tests/collectives.py"
    done = ranks.start([sys.executable, "-I", str(script)], tmp_path)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert "1 ranks" in last and "0 failures" in last, done.stdout


def broken(operation, how):
    """On rank 1 an operation gives what the ranks have in another order, or is not called."""
    import collectives
    import horovod.tensorflow as hvd

    function = getattr(hvd, operation)
    if os.environ["HOROVOD_RANK"] == "1":
        setattr(hvd, operation, {
            "reversed": lambda x, **options: function(x, **options)[::-1],
            "skipped": lambda x, **options: x,
        }[how])  # fmt: skip
    # The rank that hangs says so before the one that waits for it does.
    collectives.LIMIT = 10 if os.environ["HOROVOD_RANK"] == "0" else 100
    return collectives.run("allgather int8", "broadcast int64")


def test_a_wrong_result_is_named(tmp_path):
    found, failures = called(2, tmp_path, broken, "allgather", "reversed")
    assert [one["checks"] for one in found] == [2, 2]
    assert failures == [
        "allgather int8, rank 1 of 2: 12 of 12 elements differ, the first at [0, 0]: "
        "expected int8 [4, 3] [[-49,-42,-35], [-28,-21,-14], [-45,-38,-31], [-24,-17,-10]], "
        "got int8 [4, 3] [[-24,-17,-10], [-45,-38,-31], [-28,-21,-14], [-49,-42,-35]]"
    ]


def test_a_check_that_does_not_end_is_named(tmp_path):
    ends = "rank 0 of 2: broadcast int64: has not ended"
    with pytest.raises(AssertionError, match=ends) as failed:
        called(2, tmp_path, broken, "broadcast", "skipped")
    assert "broadcast int64, rank 1 of 2: root 0: 6 of 6 elements differ" in str(failed.value)
