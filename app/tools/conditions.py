"""Defines the conditions under which update rules are compared: a straggler, a slow link."""

from __future__ import annotations

from dataclasses import dataclass

from app.launch import private_network
from app.parallel import straggler


@dataclass(frozen=True)
class Conditions:
    """The conditions under which all rules are run.

    Attributes:
        workers: processes that compute.
        slowdown: how many times slower the last of them is made; 1: none.
        mbit: Mbit/s of the link that all share; 0: unlimited.
        price: of a worker's device for an hour; 0: not reported.
        target: the accuracy whose time is reported; 0: a point below the synchronous rule's.
        evaluations: of each run, at equal distances.
    """

    workers: int
    slowdown: float = 1.0
    mbit: float = 0.0
    price: float = 0.0
    target: float = 0.0
    evaluations: int = 10

    @property
    def of_runs(self) -> dict[str, float]:
        """The conditions that change a run; price and target change only the report."""
        return {
            "NP": self.workers, "slowdown": self.slowdown, "link_mbit": self.mbit,
            "evaluations": self.evaluations,
        }  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a run under these conditions."""
        found = {"NP": str(self.workers)}
        if self.slowdown > 1:
            found[straggler.VARIABLE] = f"{self.workers - 1}:{self.slowdown}"
        if self.mbit:
            found[private_network.LINK] = str(self.mbit)
        return found
