"""Trains while ranks come and go: one trainer after another on one state, with commits to memory.

    rank 0   step 1 .. 10 commit, 11, 12 |lost a peer| back to 10 | enter | sync | 11, 12, ...
    rank 1   step 1 .. 10 commit, 11, killed
    rank 2                                    starts, builds ..... | enter | sync | 11, 12, ...

The data of a step and the sums over it do not depend on the ranks, so that steps that are done
again, by whichever ranks, give what they gave before. A commit copies nothing (`State.snapshot`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np

from app import errors
from app.config import Layout
from app.errors import MembershipChangedError
from app.parallel import replicas
from app.parallel.membership import Membership
from app.recovery import heartbeat
from app.reporting.clock import Clock
from app.training.agreement import run_on_all_ranks
from app.training.checkpoint import Checkpoints
from app.training.setup import Run, Setup, claim_workdir
from app.training.state import State
from app.training.trainer import Trainer


class Commit:
    """The state after a step, and the seconds up to it, in this process's memory.

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
        """Gives every rank the furthest commit of any rank, or else the newest checkpoint.

        Returns its step. Ranks can differ by a commit: an all-reduce may end on one and fail on
        another.
        """
        steps = replicas.all_gather_integers(np.array([self.step + 1]))[:, 0] - 1
        furthest = int(np.argmax(steps))
        if steps[furthest] < 0:
            step = checkpoints.restore()
            self.clock.resume(checkpoints.counted)
            self.take(step)
            return self.step
        self.state.assign(self._snapshot)
        variables = self.state.state_dict()
        replicas.broadcast([variables[name] for name in sorted(variables)], furthest)
        self.clock.resume(replicas.broadcast_json(self._counted, furthest))
        self.take(int(steps[furthest]))
        return self.step


def train(setup: Setup, layout: Layout, run: Run, clock: Clock) -> dict[str, Any]:
    """Trains to the last step, on whichever ranks there are; returns what result.json holds.

    Raises:
        UserError: as `Trainer.train`.
    """
    membership, commit = Membership(), Commit(setup.state, clock)
    while True:
        heartbeat.beat("joining")
        try:
            return _train_on_members(setup, layout, run, clock, membership, commit)
        except MembershipChangedError:
            pass
        except Exception as error:
            if not errors.is_lost_peer(error):
                raise
        membership.leave()


def _train_on_members(
    setup: Setup, layout: Layout, run: Run, clock: Clock, membership: Membership, commit: Commit
) -> dict[str, Any]:
    """Trains until the ranks change, or to the end.

    Raises:
        MembershipChangedError: the ranks are about to change; the state is committed.
    """
    topology = membership.enter()
    now = dataclasses.replace(layout, processes=topology.size)
    with contextlib.ExitStack() as stack:
        signals = {"change": membership.has_changed}
        trainer = Trainer(setup, now, topology, run, clock, signals, commit.take)
        trainer.warnings += run_on_all_ranks(
            lambda: claim_workdir(setup, now, topology, run, stack)
        )
        return trainer.train(commit.sync(trainer.checkpoints))
