"""A run whose ranks change: several sessions on one state, and commits to roll back to.

    rank 0   step 1 .. 10 commit, 11, 12 |lost a peer| back to 10 | enter | sync | 11, 12, ...
    rank 1   step 1 .. 10 commit, 11, killed
    rank 2                                    starts, builds ..... | enter | sync | 11, 12, ...

The data of a step and the sums over it do not depend on the ranks, so that the steps done again,
by whomever, give what they gave before. A commit copies nothing (`State.snapshot`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import numpy as np

from app import errors
from app.config import Layout
from app.errors import MembershipChangedError
from app.parallel import replicas
from app.parallel.membership import Membership
from app.recovery import heartbeat
from app.reporting.clock import Clock
from app.training import setup as opening
from app.training.checkpoint import Checkpoints
from app.training.claim import claim
from app.training.setup import Opened
from app.training.state import State
from app.training.trainer import Run, Session


class Commit:
    """The state after a step, and the seconds until it, in this process's memory.

    Attributes:
        step: steps done; -1 before the first sync.
    """

    def __init__(self, state: State, clock: Clock) -> None:
        self.state, self.clock, self.step = state, clock, -1
        self._snapshot, self._counted = state.snapshot(), clock.counted()

    def take(self, step: int) -> None:
        """Commits the state as it is."""
        self.step = step
        self._snapshot, self._counted = self.state.snapshot(), self.clock.counted()

    def sync(self, checkpoints: Checkpoints) -> int:
        """Gives every rank the furthest commit of any, or the newest checkpoint; returns its step.

        Ranks can differ by a commit: an all-reduce may end on one and fail on another.
        """
        steps = replicas.gather(np.array([self.step + 1]))[:, 0] - 1
        furthest = int(np.argmax(steps))
        if steps[furthest] < 0:
            step = checkpoints.restore()
            self.clock.resume(checkpoints.counted)
            self.take(step)
            return self.step
        self.state.assign(self._snapshot)
        named = self.state.named()
        replicas.broadcast([named[name] for name in sorted(named)], furthest)
        counted = replicas.broadcast_text(json.dumps(self._counted), furthest)
        self.clock.resume(json.loads(counted))
        self.take(int(steps[furthest]))
        return self.step


def train(opened: Opened, layout: Layout, run: Run, clock: Clock) -> dict[str, Any]:
    """Trains to the last step, on whichever ranks there are; returns what result.json holds.

    Raises:
        UserError: as `Session.train`.
    """
    membership, commit = Membership(), Commit(opened.state, clock)
    while True:
        heartbeat.beat("joining")
        try:
            return _session(opened, layout, run, clock, membership, commit)
        except MembershipChangedError:
            pass
        except Exception as error:
            if not errors.is_lost_peer(error):
                raise
        membership.leave()


def _session(
    opened: Opened, layout: Layout, run: Run, clock: Clock, membership: Membership, commit: Commit
) -> dict[str, Any]:
    where = membership.enter()
    now = dataclasses.replace(layout, processes=where.size)
    with contextlib.ExitStack() as stack:
        wishes = {"change": membership.has_changed}
        session = Session(opened, now, where, run, clock, wishes, commit.take)
        claimed = opening.together(lambda: claim(opened, now, where, run, stack))
        session.warnings += claimed
        return session.train(commit.sync(session.checkpoints))
