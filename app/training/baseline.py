"""The simple model beside a run: computed when the run is written, so that it can lose nothing."""

from __future__ import annotations

import threading
from typing import Any

from app.errors import PreemptedError
from app.recovery import heartbeat, preemption
from input.batches import DataSet

POLL = 1.0  # seconds between beats


def compute(data: DataSet) -> dict[str, Any] | None:
    """What the data set says of its baseline, however long that takes; an error is what it says.

    Raises:
        PreemptedError: stopped meanwhile.
    """
    found: list[dict[str, Any] | None] = []

    def run() -> None:
        try:
            found.append(data.baseline())
        except BaseException as error:  # whatever it is, the run is done without it
            found.append({"name": "baseline", "error": f"{type(error).__name__}: {error}"})

    thread = threading.Thread(target=run, daemon=True)  # it cannot be interrupted
    thread.start()
    while thread.is_alive():
        heartbeat.beat(heartbeat.BASELINE)
        thread.join(POLL)
        if preemption.is_asked() and not found:
            raise PreemptedError(
                "stopped while the baseline was computed; the run is done and its result is "
                "written: the same command evaluates it again, and computes the baseline"
            ).on_every_rank(speaker=True)
    return found[0]
