"""Defines the errors that a user can fix: each is one message and an exit code for scripts.

Any other exception is a bug, keeps its traceback and exits with 1.
"""

from __future__ import annotations

import re

DONE, BUG, USAGE, DATA, CHECKPOINT, NUMBERS, DIVERGED, LOST_PEER = range(8)
PREEMPTED = 42

# By name, as launchers import this file without TensorFlow. `PSUnavailableError` is a subclass.
_OF_TENSORFLOW = "tensorflow.python.framework.errors_impl"
LOST = {f"{_OF_TENSORFLOW}.UnavailableError", f"{_OF_TENSORFLOW}.AbortedError",
        "horovod.common.exceptions.HorovodInternalError"}  # fmt: skip
UNKNOWN = f"{_OF_TENSORFLOW}.UnknownError"
# Begins an error, or a line of a graph's; may follow the device of an operator, or a number.
FROM_HOROVOD = re.compile(
    r"(^|\n|\}\} |UNKNOWN: +)(Horovod has been shut down\.|\[\S*gloo/\S+:\d+\] )"
)


class UserError(Exception):
    """An error whose message states the rule, the values that broke it and the remedy."""

    exit_code = USAGE
    everywhere = False  # raised on every rank, so that none is left waiting
    speaker = True  # False on ranks that fail only because another one did

    def on_every_rank(self, speaker: bool) -> UserError:
        """Marks an error that all ranks raise together and only the speaker prints; returns it."""
        self.everywhere, self.speaker = True, speaker
        return self


class UsageError(UserError):
    """A flag, a field or a combination of them that is not valid (exit code 2)."""


class DataError(UserError):
    """A data set that is missing, too small or damaged (exit code 3)."""

    exit_code = DATA


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or belongs to another model (exit code 4)."""

    exit_code = CHECKPOINT


class NumbersError(UserError):
    """A loss or a gradient that is not finite (exit code 5)."""

    exit_code = NUMBERS


class DivergedError(UserError):
    """Replicas that hold different weights (exit code 6)."""

    exit_code = DIVERGED


class MembershipChangedError(Exception):
    """Processes join the job or are taken out of it; all ranks raise this after the same step."""


class PreemptedError(UserError):
    """The run received a signal to stop, and has saved a checkpoint (exit code 42)."""

    exit_code = PREEMPTED


def is_lost_peer(error: BaseException) -> bool:
    """Returns whether Horovod or a parameter server's client failed because another process did.

    A server's error shows that by its type. Horovod's operators fail with TensorFlow's
    UnknownError, as a Python function in a graph does: the message of the former begins with
    Horovod's own words or a line of Gloo's sources, of the latter with an exception's name.
    """
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    if kinds & LOST:
        return True
    return UNKNOWN in kinds and bool(FROM_HOROVOD.search(str(error)))
