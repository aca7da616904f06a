"""Takes a process's turns (`turns.py`). PyTorch's environment imports it too: no packages."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Listener
from typing import Any


def serve(folder: str, facts: Mapping[str, Any], run: Callable[[int], None]) -> None:
    """Takes steps whenever the parent says how many, until it closes the connection.

    Args:
        folder: of the sides' sockets; this process's has its rank as name.
        facts: about this process for the parent, its `rank` among them.
        run: takes a number of steps.
    """
    with Listener(f"{folder}/{facts['rank']}") as listener, listener.accept() as parent:
        parent.send_bytes(json.dumps({**facts, "pid": os.getpid()}).encode())
        with contextlib.suppress(EOFError):
            while True:
                steps = json.loads(parent.recv_bytes())
                begin = time.perf_counter()
                run(steps)
                parent.send_bytes(json.dumps(time.perf_counter() - begin).encode())
