"""Errors that are the user's to mend: one message, and an exit code scripts can read.

Anything else that is raised is a bug, keeps its traceback and exits with 1.
"""

from __future__ import annotations

DONE, BUG, USAGE, DATA, CHECKPOINT, NUMBERS, DIVERGED, LOST_PEER = range(8)
PREEMPTED = 42


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

    TensorFlow passes on the text alone: Horovod's own, or Gloo's with the place in its sources.
    """
    text = str(error)
    if type(error).__name__ in ("UnavailableError", "PSUnavailableError", "AbortedError"):
        return True
    return any(part in text for part in ("Horovod has been shut down", "gloo/", "[gloo"))
