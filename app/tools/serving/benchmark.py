"""`app benchmark serving`: answers a second and their latency, by clients and kernels.

    one by one   1 client, --max_batch=1      each with TensorFlow's own kernels, and with oneDNN's
    batches      --clients, --max_batch

All servers run from the start and are measured in turn, as machines change their speed within
minutes. Every answer is compared with the one to the same request when it was the only one.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.errors import DataError
from app.launch import processes
from app.serving import server
from app.serving.versions import ModelVersion
from app.tools import rounds
from app.tools.serving import clients, report
from app.tools.serving.clients import Answer
from app.tools.serving.report import Setting
from input import InputError
from input.items import Items

ROUNDS = 5
MAX_REQUESTS = 512  # different ones
KERNELS = (False, True)  # oneDNN's?
OWN = ("input", "format", "field", "clients", "seconds", "output", "max_batch")  # serve has others


def main(
    settings: Sequence[Setting], requests: Sequence[bytes], seconds: float, flags: Sequence[str],
    folder: Path,
) -> int:  # fmt: skip
    """Measures every setting; prints and writes the report. Returns the exit code.

    Args:
        settings: `make_settings`.
        requests: `make_requests`.
        seconds: of a round.
        flags: of `serve`, for all servers.
        folder: of the report.

    Raises:
        InputError: none is answered.
        DataError: a server does not start, or stops.
    """
    folder.mkdir(parents=True, exist_ok=True)
    duration = len(settings) * (ROUNDS * seconds + 1)
    print(f"{len(requests)} requests, {len(settings)} settings: about {duration:.0f} s", flush=True)
    with servers({s.server for s in settings}, flags, folder) as ports:
        requests, expected = answered(ports[settings[0].server], requests)
        answers = measure(settings, ports, requests, seconds)
    rows = [report.summarize(s, answers[s], seconds, expected) for s in settings]
    lines = [report.HEADING, *map(report.line, rows), "", *report.advice(rows)]
    print("\n".join(lines))
    rounds.write_report(folder, "serving", rows, lines)
    return report.exit_code(rows)


def make_requests(model: ModelVersion, items: Items) -> list[bytes]:
    """Returns the requests, at most MAX_REQUESTS, evenly from all items.

    Raises:
        InputError: no item can be read.
    """
    requests = []
    for i in range(0, len(items), -(-len(items) // MAX_REQUESTS)):
        with contextlib.suppress(ValueError, OSError):
            raw, _ = items.fetch(i)
            requests.append(clients.encode(model.name, raw, str(model.about.kind)))
    if not requests:
        raise InputError("--input holds nothing that can be read.")
    return requests


def make_settings(max_batch: int, counts: Sequence[int]) -> list[Setting]:
    """Returns one by one, and batches for each number of clients, on both kinds of kernels."""
    return [
        Setting(onednn, *rest)
        for onednn in KERNELS
        for rest in [(1, 1), *((max_batch, count) for count in sorted(set(counts)))]
    ]


def answered(port: int, requests: Sequence[bytes]) -> tuple[list[bytes], list[Any]]:
    """Returns the requests that are not refused, and their predictions one by one.

    Raises:
        InputError: all are refused.
    """
    answers = clients.send_each_once(port, requests)
    fine = [answer for answer in answers if answer.status == 200]
    if not fine:
        reason = json.loads(answers[0].body)["error"]
        raise InputError(f"the server refused all of --input, and said: {reason}")
    return [requests[answer.request] for answer in fine], list(map(report.prediction, fine))


def measure(
    settings: Sequence[Setting],
    ports: Mapping[tuple[bool, int], int],
    requests: Sequence[bytes],
    seconds: float,
) -> dict[Setting, list[list[Answer]]]:
    """Returns the answers of each round, for each setting.

    Raises:
        ConnectionError: a server closed a connection.
    """

    def send(setting: Setting, seconds: float, seed: int) -> list[Answer]:
        return clients.send_for(ports[setting.server], requests, setting.clients, seconds, seed)

    for setting in settings:
        send(setting, min(1, seconds), -1)  # warms its server up
    return rounds.by_turns(settings, ROUNDS, lambda setting, turn: send(setting, seconds, turn))


@contextlib.contextmanager
def servers(
    kinds: set[tuple[bool, int]], flags: Sequence[str], folder: Path
) -> Iterator[dict[tuple[bool, int], int]]:
    """Runs a server for each pair of oneDNN's kernels and max_batch; yields their ports.

    Raises:
        DataError: one does not start, or closes a connection while it is measured.
    """
    ports = {}
    with contextlib.ExitStack() as stack:
        for onednn, max_batch in sorted(kinds):
            with server.listening("127.0.0.1", 0) as free:
                port = ports[onednn, max_batch] = free.getsockname()[1]
            command = [sys.executable, "-m", "app", "serve", *flags]
            command += [f"--port={port}", f"--max_batch={max_batch}"]
            variables = {"TF_ENABLE_ONEDNN_OPTS": str(int(onednn))}
            log = folder / f"serve-{int(onednn)}-{max_batch}.log"
            errors = stack.enter_context(log.open("w"))
            process = processes.start(command, variables, stdout=subprocess.PIPE, stderr=errors)
            stack.enter_context(process)  # left last: waits for it, and closes its pipe
            stack.callback(process.terminate)
            assert process.stdout
            if not process.stdout.readline():
                raise DataError(f"the server did not start: {processes.last_line(log)}.")
        try:
            yield ports
        except ConnectionError as error:
            reason = f"a server stopped answering ({error}): see its log in {folder}"
            raise DataError(f"{reason}.") from None
