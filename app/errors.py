"""Errors that are the user's to mend: one message, and an exit code scripts can read.

Anything else that is raised is a bug, keeps its traceback and exits with 1.
"""

from __future__ import annotations

import re

DONE, BUG, USAGE, DATA, CHECKPOINT, NUMBERS, DIVERGED, LOST_PEER = range(8)
PREEMPTED = 42

# By name, as launchers read this file and import no TensorFlow. `PSUnavailableError` is one too.
_OF_TENSORFLOW = "tensorflow.python.framework.errors_impl"
LOST = {f"{_OF_TENSORFLOW}.UnavailableError", f"{_OF_TENSORFLOW}.AbortedError",
        "horovod.common.exceptions.HorovodInternalError"}  # fmt: skip
UNKNOWN = f"{_OF_TENSORFLOW}.UnknownError"
# After the device of an eager operator, on a line of its own of a graph's, or one of several.
FROM_HOROVOD = re.compile(
    r"(^|\n|\}\} |UNKNOWN: +)(Horovod has been shut down\.|\[\S*gloo/\S+:\d+\] )"
)


class UserError(Exception):
    """States the rule, the values that broke it and the way out, in one sentence."""

    exit_code = USAGE
    everywhere = False  # raised on every rank, so that none is left waiting
    speaker = True  # False on the ranks that fail because another one did

    def on_every_rank(self, speaker: bool) -> UserError:
        """Marks an error that all ranks raise together, one of them aloud."""
        self.everywhere, self.speaker = True, speaker
        return self


class UsageError(UserError):
    """A flag, a field or a combination of them that cannot be (exit code 2)."""


class DataError(UserError):
    """A data set that is missing, too small or damaged (exit code 3)."""

    exit_code = DATA


class CheckpointError(UserError):
    """A checkpoint that cannot be read or is another model's (exit code 4)."""

    exit_code = CHECKPOINT


class NumbersError(UserError):
    """A loss or a gradient that is not finite (exit code 5)."""

    exit_code = NUMBERS


class DivergedError(UserError):
    """Replicas that hold different weights (exit code 6)."""

    exit_code = DIVERGED


class MembershipChangedError(Exception):
    """Processes may join or were taken away; all ranks leave after the same step."""


class PreemptedError(UserError):
    """The run was told to stop, and has saved (exit code 42)."""

    exit_code = PREEMPTED


def is_lost_peer(error: BaseException) -> bool:
    """Whether Horovod, or a parameter server's client, failed because another process did.

    Of a server's client the type says so. Horovod's operators fail with TensorFlow's
    UnknownError, as a Python function in a graph does: the one begins with Horovod's own words or
    with the place in Gloo's sources, the other with the name of the exception that was raised.
    """
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    if kinds & LOST:
        return True
    return UNKNOWN in kinds and bool(FROM_HOROVOD.search(str(error)))
