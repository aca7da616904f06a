"""`app benchmark serving`: answers a second and their latency, by clients and kernels.

    one by one   1 client, --max_batch=1      each with TensorFlow's own kernels, and with oneDNN's
    batches      --clients, --max_batch

All servers run from the start and are asked in turn, as machines change their speed within minutes.
Every answer is compared with what the same request got alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app.errors import DONE, NUMBERS, DataError
from app.recovery import processes
from app.serving import clients, server
from app.serving.clients import Answer
from app.serving.versions import Found
from input import InputError
from input.items import Items

ROUNDS = 5
MOST = 512  # items that are asked about
CLOSE = 1e-4  # that a number may differ from the one that was given alone
KERNELS = (False, True)  # oneDNN's?
OWN = ("input", "format", "field", "clients", "seconds", "output", "max_batch")  # serve has others


class Setting(NamedTuple):
    """What is measured: a server, and how many ask it."""

    onednn: bool
    max_batch: int
    clients: int


class Load(NamedTuple):
    """What is to be measured.

    Attributes:
        found: the model.
        items: what clients ask about.
        clients: of the servers that batch.
        max_batch: of these.
        seconds: of a round.
        flags: of `serve`, for all servers.
    """

    found: Found
    items: Items
    clients: Sequence[int]
    max_batch: int
    seconds: float
    flags: Sequence[str]


def main(load: Load, folder: Path) -> int:
    """Measures every setting; prints and writes the report. Returns the exit code.

    Raises:
        DataError: no item can be read, a server does not start or stops.
    """
    folder.mkdir(parents=True, exist_ok=True)
    requests = readable(load)
    every = settings(load.max_batch, load.clients)
    lasts = len(every) * (ROUNDS * load.seconds + 1)
    print(f"{len(requests)} requests, {len(every)} settings: about {lasts:.0f} s", flush=True)
    with running({s[:2] for s in every}, load.flags, folder) as ports, told_if_closed(folder):
        requests, alone = answered_alone(ports[every[0][:2]], requests)
        answers = asked(every, ports, requests, load.seconds)
    rows = [measured(s, answers[s], load.seconds, alone) for s in every]
    lines = [heading(), *map(line, rows), "", *advice(rows)]
    print("\n".join(lines))
    (folder / "serving.json").write_text(json.dumps(rows, indent=1) + "\n")
    (folder / "serving.txt").write_text("\n".join(lines) + "\n")
    print(f"report: {folder / 'serving.txt'}, serving.json")
    return verdict(rows)


def readable(load: Load) -> list[bytes]:
    """The requests, at most MOST, evenly from all items.

    Raises:
        InputError: no item can be read.
    """
    items, requests = load.items, []
    for i in range(0, len(items), -(-len(items) // MOST)):
        with contextlib.suppress(ValueError, OSError):
            raw, _ = items.fetch(i)
            requests.append(clients.written(load.found.name, raw, str(load.found.about.kind)))
    if not requests:
        raise InputError("--input holds nothing that can be read.")
    return requests


def answered_alone(port: int, requests: Sequence[bytes]) -> tuple[list[bytes], list[Any]]:
    """The requests that are not refused, and what each is told when nobody else asks.

    Raises:
        InputError: all are refused.
    """
    answers = clients.each_once(port, requests)
    fine = [answer for answer in answers if answer.status == 200]
    if not fine:
        reason = json.loads(answers[0].body)["error"]
        raise InputError(f"the server refused all of --input, and said: {reason}")
    return [requests[answer.request] for answer in fine], [told(answer) for answer in fine]


def settings(max_batch: int, counts: Sequence[int]) -> list[Setting]:
    """One by one, and batches for each number of clients, on both kinds of kernels."""
    return [
        Setting(onednn, *rest)
        for onednn in KERNELS
        for rest in [(1, 1), *((max_batch, count) for count in counts)]
    ]


def asked(
    every: Sequence[Setting],
    ports: dict[tuple[bool, int], int],
    requests: Sequence[bytes],
    seconds: float,
) -> dict[Setting, list[list[Answer]]]:
    """The answers of each round, for each setting.

    Raises:
        ConnectionError: a server closed a connection.
    """
    answers: dict[Setting, list[list[Answer]]] = {setting: [] for setting in every}
    for setting in every:
        clients.for_a_while(ports[setting[:2]], requests, setting.clients, min(1, seconds), -1)
    for turn in range(ROUNDS):
        for setting in every if turn % 2 else every[::-1]:
            port = ports[setting[:2]]
            found = clients.for_a_while(port, requests, setting.clients, seconds, turn)
            answers[setting].append(found)
    return answers


@contextlib.contextmanager
def running(
    kinds: set[tuple[bool, int]], flags: Sequence[str], folder: Path
) -> Iterator[dict[tuple[bool, int], int]]:
    """A server each of (oneDNN's kernels, max_batch); gives their ports.

    Raises:
        DataError: one does not start.
    """
    ports = {}
    with contextlib.ExitStack() as stack:
        for onednn, max_batch in sorted(kinds):
            with server.listening("127.0.0.1", 0) as free:
                port = ports[onednn, max_batch] = free.getsockname()[1]
            command = [sys.executable, "-m", "app", "serve", *flags, f"--port={port}"]
            variables = os.environ | {"TF_ENABLE_ONEDNN_OPTS": str(int(onednn))}
            log = folder / f"serve-{int(onednn)}-{max_batch}.log"
            process = subprocess.Popen(
                [*command, f"--max_batch={max_batch}"], env=variables, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=stack.enter_context(log.open("w")),
                preexec_fn=processes.die_with_parent,
            )  # fmt: skip
            stack.enter_context(process)  # left last: waits for it, and closes its pipe
            stack.callback(process.terminate)
            assert process.stdout
            if not process.stdout.readline():
                reason = "\n".join(log.read_text().splitlines()[-1:])
                raise DataError(f"the server did not start ({reason}): see {log}.")
        yield ports


@contextlib.contextmanager
def told_if_closed(folder: Path) -> Iterator[None]:
    """A connection that the server closes is an error for people."""
    try:
        yield
    except ConnectionError as error:
        raise DataError(f"a server stopped answering ({error}): see its log in {folder}.") from None


def told(answer: Answer) -> Any:
    """What an answer says: numbers by the names of classes, so that their order does not matter."""
    (row,) = json.loads(answer.body)["predictions"]
    if isinstance(row, dict) and {"classes", "scores"} <= set(row):
        return dict(zip(row["classes"], row["scores"], strict=True))
    return row


def agrees(one: Any, other: Any) -> bool:
    """Whether two answers tell the same, but for rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        return set(one) == set(other) and all(agrees(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(agrees, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= CLOSE
    return type(one) is type(other) and one == other


def measured(
    setting: Setting, rounds: Sequence[Sequence[Answer]], seconds: float, alone: Sequence[Any]
) -> dict[str, Any]:
    """A row of the report: speeds of the rounds, their median, percentiles over all answers."""
    every = [answer for found in rounds for answer in found]
    fine = [answer for answer in every if answer.status == 200]
    speeds = [sum(a.status == 200 and a.end <= seconds for a in r) / seconds for r in rounds]
    taken = [1e3 * (a.end - a.begin) for a in fine] or [float("nan")]
    p50, p90, p99 = np.percentile(taken, [50, 90, 99])
    return {
        **setting._asdict(), "answers_per_second": statistics.median(speeds), "rounds": speeds,
        "p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "answers": len(fine),
        "refused": len(every) - len(fine),
        "wrong": sum(not agrees(told(a), alone[a.request]) for a in fine),
    }  # fmt: skip


def heading() -> str:
    """Of the table."""
    return (
        f"{'oneDNN':>6} {'max batch':>9} {'clients':>7} {'answers/s':>9} {'p50 ms':>8} "
        f"{'p90 ms':>8} {'p99 ms':>8} {'answers':>8} {'refused':>7} {'wrong':>5}"
    )


def line(row: dict[str, Any]) -> str:
    """Of the table."""
    return (
        f"{'on' if row['onednn'] else 'off':>6} {row['max_batch']:9} {row['clients']:7} "
        f"{row['answers_per_second']:9.1f} {row['p50_ms']:8.1f} {row['p90_ms']:8.1f} "
        f"{row['p99_ms']:8.1f} {row['answers']:8} {row['refused']:7} {row['wrong']:5}"
    )


def advice(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The best settings on this machine, and what batches and cores are worth."""
    batched = [row for row in rows if row["max_batch"] > 1 or row["clients"] > 1]
    lone = [row for row in rows if row not in batched]
    most = max(batched, key=lambda row: row["answers_per_second"])
    soonest = min(rows, key=lambda row: row["p50_ms"])
    best = max(lone, key=lambda row: row["answers_per_second"])
    turns = [a / b for a, b in zip(most["rounds"], best["rounds"], strict=True) if b]
    return [
        f"most a second: {called(most)}: {most['answers_per_second']:.1f} answers/s, p99 "
        f"{most['p99_ms']:.0f} ms",
        f"soonest: {called(soonest)}: p50 {soonest['p50_ms']:.1f} ms",
        f"most a second is {statistics.median(turns or [0]):.2f} times the best one by one "
        f"({called(best)}: {best['answers_per_second']:.1f} answers/s); rounds "
        f"{', '.join(f'{turn:.2f}' for turn in turns)}",
    ]


def called(row: dict[str, Any]) -> str:
    """A setting as commands take it."""
    onednn, size = int(row["onednn"]), row["max_batch"]
    who = "1 client" if row["clients"] == 1 else f"{row['clients']} clients"
    return f"TF_ENABLE_ONEDNN_OPTS={onednn} ./run.sh serve --max_batch={size}, {who}"


def verdict(rows: Sequence[dict[str, Any]]) -> int:
    """The exit code: answers must all be there, and right."""
    wrong, refused = (sum(row[name] for row in rows) for name in ("wrong", "refused"))
    if wrong:
        print(f"error: {wrong} answers are not what the request got alone.", file=sys.stderr)
        return NUMBERS
    if refused:
        print(f"warning: {refused} requests were refused, as the queue was full.", file=sys.stderr)
    return DONE
