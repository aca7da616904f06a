"""`app serve`: an exported model over TensorFlow Serving's REST API, and a page to try it on.

The event loop's thread talks to clients and never computes; TensorFlow computes in threads of its
own. A client can be slow, malformed, too large or gone: none is waited for by the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import ipaddress
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from app.errors import UsageError
from app.serving import versions
from app.serving.api import Service
from app.serving.asked import Checks
from app.serving.batching import Batcher
from app.serving.bodies import Bodies
from app.serving.connection import Connection
from app.serving.model import Model, load
from app.serving.origins import must_be_origins
from app.serving.warming import choose_variables, hold_threads, warm_up
from input.raw import Limits


@dataclass(frozen=True)
class Settings:
    """What `app serve` was told.

    Attributes:
        model: folder of an export.
        name: of the model; None: its own.
        host, port: to listen on.
        threads: cores to use; 0: all.
        max_batch: instances computed at once.
        batch_wait_ms: that a batch waits for more.
        queue: instances that may wait.
        max_body_bytes, max_pixels, max_text: of a request, an image, a text.
        request_seconds: for a request to arrive.
        grace_seconds: to answer what is in flight, when told to stop.
        origins: of web pages that may ask; "*": all.
    """

    model: Path
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8501
    threads: int = 0
    max_batch: int = 32
    batch_wait_ms: float = 2
    queue: int = 256
    max_body_bytes: int = 16_000_000
    max_pixels: int = 50_000_000
    max_text: int = 100_000
    request_seconds: float = 30
    grace_seconds: float = 30
    origins: tuple[str, ...] = ()


def main(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        UsageError: the model's folder or the port cannot be used.
        DataError: the model is damaged.
    """
    must_be_origins(settings.origins)
    found = versions.find(settings.model, settings.name)
    with handling_signals(stop), listening(settings.host, settings.port) as listener:
        cores = settings.threads or len(os.sched_getaffinity(0))
        choose_variables(found.about.kind)
        hold_threads(cores)
        model = load(found)
        warm_up(model, settings.max_batch)
        gc.freeze()  # what is there now stays: no collection looks at it again
        batcher = Batcher(
            model.run, cores, settings.max_batch, settings.batch_wait_ms / 1e3, settings.queue
        )
        checks = Checks(found.about.kind, Limits(settings.max_pixels, settings.max_text))
        bodies = Bodies(settings.max_body_bytes, settings.request_seconds)
        service = Service(model, batcher, checks, bodies, settings.origins)
        try:
            listener.listen(2048)  # not before: who connects is answered
        except OSError as error:
            raise port_error(settings.host, settings.port, error) from None
        print(started(model, settings, listener, cores), flush=True)
        serve(service, listener, settings)
        batcher.close()
        sys.stdout.flush()
        if batcher.running:  # longer than the grace: Python would wait for these threads
            os._exit(0)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that has the port, and refuses connections until it listens.

    Raises:
        UsageError: it cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"--host={host} is no address of this machine ({reason}): give one, as 127.0.0.1."
        ) from None
    # By its name: for a protocol of 0, asyncio would let small answers wait for an acknowledgement.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise port_error(host, port, error) from None
        yield listener


def port_error(host: str, port: int, error: OSError) -> UsageError:
    """Why nothing can listen there."""
    return UsageError(f"{host}:{port} cannot be used ({error.strerror}): give another --port.")


def started(model: Model, settings: Settings, listener: socket.socket, cores: int) -> str:
    """What is served, where and how."""
    about, (host, port) = model.found.about, listener.getsockname()[:2]
    kinds = [about.kind or "any", f"{len(about.classes)} classes" if about.classes else ""]
    what = ", ".join([f"version {model.found.version}", *filter(None, kinds)])
    where = f"[{host}]" if ":" in host else host
    warning = ""
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        warning = (
            f"warning: {host} can be reached by others, and there is no authentication: let a "
            "proxy or a firewall decide who may.\n"
        )
    return (
        f"{warning}serving {model.found.name} ({what}) on http://{where}:{port}; page at /; "
        f"{cores} threads, batches of up to {settings.max_batch}"
    )


def stop(*_: Any) -> None:
    """Told to stop before it serves, the process ends at once."""
    raise SystemExit(0)


@contextlib.contextmanager
def handling_signals(handler: Callable[..., Any]) -> Iterator[None]:
    """Has SIGTERM and SIGINT handled."""
    before = {s: signal.signal(s, handler) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def serve(service: Service, listener: socket.socket, settings: Settings) -> None:
    """Runs the event loop until it is told to stop, and what is in flight is answered."""
    protocol = functools.partial(Connection, settings.request_seconds)
    config = uvicorn.Config(
        service, http=protocol, loop="asyncio", ws="none", lifespan="off",  # type: ignore[arg-type]
        log_config=None, log_level="error", access_log=False, server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=math.ceil(settings.grace_seconds),
    )  # fmt: skip
    Server(config, service).run([listener])


class Server(uvicorn.Server):
    """Uvicorn's, for which being told to stop is not to be killed by the signal."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        """See base class, which raises the signals again at its end."""
        return handling_signals(self.handle_exit)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See base class; whoever is connecting as the signal comes is let in."""
        self._service.is_draining = True
        await asyncio.sleep(0.05)
        await super().shutdown(sockets)
