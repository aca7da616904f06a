"""Reads TF_CONFIG, which describes the processes of a parameter-server job to each of them.

    {"cluster": {"chief": ["a:2222"], "ps": ["b:2222"], "worker": ["c:2222", "d:2222"]},
     "task": {"type": "worker", "index": 1}}

The chief runs the training loop and reads the data, a ps holds weights, a worker computes
gradients. It is TensorFlow's own format, which cluster managers write.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import UsageError

VARIABLE = "TF_CONFIG"
PATIENCE = "SCALEPROOF_REACH_SECONDS"  # environment variable: how long to wait for other tasks
JOBS = ("chief", "ps", "worker")
EXAMPLE = (
    '{"cluster": {"chief": ["a:2222"], "ps": ["b:2222"], "worker": ["c:2222"]}, '
    '"task": {"type": "chief", "index": 0}}'
)


@dataclass(frozen=True)
class Cluster:
    """The addresses of a job's tasks, and which of them this process is.

    Attributes:
        tasks: host:port of each task of each job.
        job, index: of this process.
    """

    tasks: Mapping[str, tuple[str, ...]]
    job: str = "chief"
    index: int = 0

    @property
    def address(self) -> str:
        """host:port of this process."""
        return self.tasks[self.job][self.index]

    @property
    def is_server(self) -> bool:
        """Whether this process only executes what the chief sends."""
        return self.job != "chief"

    def environment(self, job: str, index: int) -> dict[str, str]:
        """Returns the environment variables of a process that is to be this task."""
        task = {"type": job, "index": index}
        return {VARIABLE: json.dumps({"cluster": dict(self.tasks), "task": task})}


def from_environment(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """Returns the cluster that the environment describes, if it describes one.

    Raises:
        UsageError: TF_CONFIG does not have the form above.
    """
    text = environment.get(VARIABLE)
    return _parse(text) if text else None


def has_servers(environment: Mapping[str, str] = os.environ) -> bool:
    """Returns whether the environment names parameter servers, readable or not."""
    return '"ps"' in environment.get(VARIABLE, "")


def check_addresses(addresses: Sequence[Any], source: str) -> None:
    """Checks the addresses of servers.

    Raises:
        UsageError: one is not host:port, or is that of two.
    """
    for address in addresses:
        host, _, port = str(address).rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UsageError(
                f"{source}: {address!r} must be host:port, with a port from 1 to 65535."
            )
        if addresses.count(address) > 1:
            raise UsageError(f"{source} names {address} twice: give each server its own port.")


def _parse(text: str) -> Cluster:
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
        counted = ", ".join(f"{len(addresses)} {job}" for job, addresses in tasks.items())
        raise UsageError(
            f"{VARIABLE} must name 1 chief, 1 ps or more and 1 worker or more, not {counted}."
        )
    check_addresses([address for some in tasks.values() for address in some], VARIABLE)
    if job not in tasks or not isinstance(index, int) or not 0 <= index < len(tasks[job]):
        raise UsageError(
            f"{VARIABLE}: task {job} {index} is not in the cluster: give a type of "
            f"{', '.join(JOBS)} and an index below the number of its addresses."
        )
    return Cluster(tasks, job, index)
