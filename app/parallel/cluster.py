"""The processes of a parameter-server job, as TF_CONFIG describes them to each.

    {"cluster": {"chief": ["a:2222"], "ps": ["b:2222"], "worker": ["c:2222", "d:2222"]},
     "task": {"type": "worker", "index": 1}}

The chief runs the training loop and reads the data, a ps holds weights, a worker computes
gradients. It is TensorFlow's own format, which cluster managers write.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from app.errors import UsageError

VARIABLE = "TF_CONFIG"
PATIENCE = "SCALEPROOF_REACH_SECONDS"  # environment variable: for other tasks to listen
JOBS = ("chief", "ps", "worker")
EXAMPLE = (
    '{"cluster": {"chief": ["a:2222"], "ps": ["b:2222"], "worker": ["c:2222"]}, '
    '"task": {"type": "chief", "index": 0}}'
)


@dataclass(frozen=True)
class Cluster:
    """Who is where, and which of them this process is.

    Attributes:
        tasks: host:port of each task of each job.
        job, index: of this process.
    """

    tasks: Mapping[str, tuple[str, ...]]
    job: str = "chief"
    index: int = 0

    @property
    def address(self) -> str:
        """Of this process."""
        return self.tasks[self.job][self.index]

    @property
    def is_server(self) -> bool:
        """Whether it does what the chief tells it, and nothing else."""
        return self.job != "chief"

    def environment(self, job: str, index: int) -> dict[str, str]:
        """What tells a process that it is this task."""
        task = {"type": job, "index": index}
        return {VARIABLE: json.dumps({"cluster": dict(self.tasks), "task": task})}


def given(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """The cluster that the environment describes, if it does.

    Raises:
        UsageError: it is not as above.
    """
    text = environment.get(VARIABLE)
    return _parsed(text) if text else None


def has_servers(environment: Mapping[str, str] = os.environ) -> bool:
    """Returns whether the environment names parameter servers, readable or not."""
    return '"ps"' in environment.get(VARIABLE, "")


def _parsed(text: str) -> Cluster:
    try:
        config = json.loads(text)
        tasks = {job: tuple(addresses) for job, addresses in config["cluster"].items()}
        job, index = str(config["task"]["type"]), config["task"]["index"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{VARIABLE} must describe a cluster as {EXAMPLE}, but it cannot be read "
            f"({type(error).__name__}: {error})."
        ) from None
    counts = {name: len(tasks.get(name, ())) for name in JOBS}
    if set(tasks) - set(JOBS) or counts["chief"] != 1 or not counts["ps"] or not counts["worker"]:
        told = ", ".join(f"{len(addresses)} {job}" for job, addresses in tasks.items())
        raise UsageError(
            f"{VARIABLE} must name 1 chief, 1 ps or more and 1 worker or more, not {told}."
        )
    named = [address for addresses in tasks.values() for address in addresses]
    for address in named:
        host, _, port = str(address).rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UsageError(
                f"{VARIABLE}: {address!r} must be host:port, with a port from 1 to 65535."
            )
        if named.count(address) > 1:
            raise UsageError(f"{VARIABLE} names {address} twice, but a port is one task's.")
    if job not in tasks or not isinstance(index, int) or not 0 <= index < len(tasks[job]):
        raise UsageError(
            f"{VARIABLE}: task {job} {index} is not in the cluster: give a type of "
            f"{', '.join(JOBS)} and an index below the number of its addresses."
        )
    return Cluster(tasks, job, index)
