"""Reports on a server: whether all was answered, and rightly, how often and how soon."""

import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from app.errors import DONE, NUMBERS
from app.tools.serving.clients import Answer

HEADING = "oneDNN max batch clients answers/s   p50 ms   p90 ms   p99 ms  answers refused wrong"
ROW = (
    "{onednn:>6} {max_batch:9} {clients:7} {answers_per_second:9.1f} {p50_ms:8.1f} {p90_ms:8.1f} "
    "{p99_ms:8.1f} {answers:8} {refused:7} {wrong:5}"
)
TOLERANCE = 1e-4  # that a number may differ from the one that was answered without other requests


class Setting(NamedTuple):
    """What is measured: a server, and the number of its clients."""

    onednn: bool
    max_batch: int
    clients: int

    @property
    def server(self) -> tuple[bool, int]:
        """Which of the servers."""
        return self.onednn, self.max_batch


def prediction(answer: Answer) -> Any:
    """Returns what an answer predicts, as numbers by class where it has classes, in any order."""
    (row,) = json.loads(answer.body)["predictions"]
    if isinstance(row, dict) and {"classes", "scores"} <= set(row):
        return dict(zip(row["classes"], row["scores"], strict=True))
    return row


def agrees(one: Any, other: Any) -> bool:
    """Whether two predictions are the same, but for rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        return set(one) == set(other) and all(agrees(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(agrees, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= TOLERANCE
    return type(one) is type(other) and one == other


def summarize(
    setting: Setting, rounds: Sequence[Sequence[Answer]], seconds: float, expected: Sequence[Any]
) -> dict[str, Any]:
    """Returns a row: the speeds of the rounds, their median, percentiles over all answers.

    Args:
        setting: that was measured.
        rounds: the answers of each round.
        seconds: of a round.
        expected: predictions, by request.
    """
    answers = [answer for found in rounds for answer in found]
    fine = [answer for answer in answers if answer.status == 200]
    speeds = [sum(a.status == 200 and a.end <= seconds for a in r) / seconds for r in rounds]
    latencies = [1e3 * (a.end - a.begin) for a in fine] or [float("nan")]
    p50, p90, p99 = np.percentile(latencies, [50, 90, 99])
    return {
        **setting._asdict(), "answers_per_second": statistics.median(speeds), "rounds": speeds,
        "p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "answers": len(fine),
        "refused": len(answers) - len(fine),
        "wrong": sum(not agrees(prediction(a), expected[a.request]) for a in fine),
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """Returns a row as a line of the table."""
    return ROW.format_map({**row, "onednn": "on" if row["onednn"] else "off"})


def advice(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Names the best settings on this machine, and how much faster batches are."""
    batched = [row for row in rows if row["max_batch"] > 1 or row["clients"] > 1]
    single = [row for row in rows if row not in batched]
    most = max(batched, key=lambda row: row["answers_per_second"])
    soonest = min(rows, key=lambda row: row["p50_ms"])
    best = max(single, key=lambda row: row["answers_per_second"])
    ratios = [a / b for a, b in zip(most["rounds"], best["rounds"], strict=True) if b]
    return [
        f"most a second: {command(most)}: {most['answers_per_second']:.1f} answers/s, p99 "
        f"{most['p99_ms']:.0f} ms",
        f"soonest: {command(soonest)}: p50 {soonest['p50_ms']:.1f} ms",
        f"most a second is {statistics.median(ratios or [0]):.2f} times the best one by one "
        f"({command(best)}: {best['answers_per_second']:.1f} answers/s); rounds "
        f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}",
    ]


def command(row: dict[str, Any]) -> str:
    """Returns the command that serves with a row's setting."""
    onednn, size = int(row["onednn"]), row["max_batch"]
    clients = "1 client" if row["clients"] == 1 else f"{row['clients']} clients"
    return f"TF_ENABLE_ONEDNN_OPTS={onednn} ./run.sh serve --max_batch={size}, {clients}"


def exit_code(rows: Sequence[dict[str, Any]]) -> int:
    """Returns the exit code, and prints what is wrong: all must be answered, and rightly."""
    wrong, refused = (sum(row[name] for row in rows) for name in ("wrong", "refused"))
    if wrong:
        print(f"error: {wrong} answers are not what the request got by itself.", file=sys.stderr)
        return NUMBERS
    if refused:
        print(f"warning: {refused} requests were refused, as the queue was full.", file=sys.stderr)
    return DONE
