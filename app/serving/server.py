"""Runs `app serve`: an exported model over TensorFlow Serving's REST API, and a page to try it.

The event loop's thread talks to clients and never computes; TensorFlow computes in threads of its
own. A client can be slow, send nonsense or too much, or be gone: no other client waits for it.

The way of a request: connection.py (HTTP within bounds), api.py (its path, and all steps below),
codec.py with tensors.py (JSON to tensors and back), batching.py, model.py.
"""

import asyncio
import contextlib
import functools
import gc
import ipaddress
import math
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from app.cli import loading
from app.errors import UsageError
from app.serving import versions
from app.serving.api import Service
from app.serving.batching import Batcher
from app.serving.connection import BodyReader, Connection
from app.serving.model import Model, load
from app.serving.tensors import InputCheck
from input.raw import Limits

ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:\d+)?")


@dataclass(frozen=True)
class Settings:
    """The settings of a server, by the names of the flags of `serve`.

    Attributes:
        model: folder of an export.
        name: of the model in its path; None: its own.
        host, port: to listen on.
        threads: cores to use; 0: all.
        max_batch: instances computed at once.
        batch_wait_ms: that a batch waits for more.
        queue: instances that may wait.
        max_body_mb, max_pixels, max_text: megabytes of a request, pixels of an image, bytes of a
            text.
        request_seconds: for a request to arrive.
        grace_seconds: to answer what is in flight when the server is stopped.
        cors_origins: of web pages that may send requests; "*": all.
    """

    model: str
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8501
    threads: int = 0
    max_batch: int = 32
    batch_wait_ms: float = 2
    queue: int = 256
    max_body_mb: float = 16
    max_pixels: int = 50_000_000
    max_text: int = 100_000
    request_seconds: float = 30
    grace_seconds: float = 30
    cors_origins: Sequence[str] = ()


def main(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        UsageError: the model's folder, the port or an origin cannot be used.
        DataError: the model is damaged.
    """
    check_origins(settings.cors_origins)
    version = versions.find(Path(settings.model), settings.name)
    exiting = handling_signals(lambda *_: sys.exit(0))
    with exiting, listening(settings.host, settings.port) as listener:
        cores = settings.threads or len(os.sched_getaffinity(0))
        choose_variables(version.about.kind)
        hold_threads(cores)
        model = load(version)
        model.warm_up(settings.max_batch)
        gc.freeze()  # what exists now stays: no collection looks at it again
        batcher = Batcher(
            model.run, cores, settings.max_batch, settings.batch_wait_ms / 1e3, settings.queue
        )
        check = InputCheck(version.about.kind, Limits(settings.max_pixels, settings.max_text))
        bodies = BodyReader(int(settings.max_body_mb * 1e6), settings.request_seconds)
        service = Service(model, batcher, check, bodies, settings.cors_origins)
        try:
            listener.listen(2048)  # not before: whoever connects is answered
        except OSError as error:
            raise port_error(settings.host, settings.port, error) from None
        print(describe(model, settings, listener, cores), flush=True)
        serve(service, listener, settings)
        batcher.close()
        sys.stdout.flush()
        if batcher.running:  # longer than the grace: Python would wait for these threads
            os._exit(0)


def check_origins(origins: Sequence[str]) -> None:
    """Checks the origins of web pages.

    Raises:
        UsageError: a browser would send none that is equal to one of them.
    """
    for origin in origins:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            raise UsageError(
                f"--cors_origins={','.join(origins)} must be origins, as https://a.example or "
                f"http://localhost:3000, without a path, or * for all: {origin!r} is not one."
            )


def choose_variables(kind: str | None) -> None:
    """Sets what TensorFlow reads as it is imported, unless the environment does.

    Memory that is kept: what a batch gave back is not requested from the system again. Of the
    kernels oneDNN's for texts, which TensorFlow takes by itself only on CPUs with AVX512-VNNI or
    AMX. On 2 cores with AVX2 both together gave 64 clients of MiniLM 1.05 times the answers, and a
    single one as many. Clients of ResNet-50 saw no difference from kept memory, and with oneDNN got
    0.7 to 0.8 of the answers.
    """
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    if kind == "text":
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def hold_threads(cores: int) -> None:
    """Imports TensorFlow, and limits its threads before its first operation.

    As many batches are computed at once as there are cores, each on one: the operators of a small
    model are too short to be split well, and between them only one core works (tokenisation,
    shapes, copies). With all cores inside an operator too, MiniLM was seen to answer 102 requests a
    second instead of 121, on 2 cores without AVX-512. So a single request has one core.
    """
    loading.tensorflow()
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # there was an operation: it stays as it is
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(cores)
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Provides a socket that has the port, and refuses connections until it listens.

    Raises:
        UsageError: the host or the port cannot be used.
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
    """Returns the error of a port that cannot be used."""
    return UsageError(f"{host}:{port} cannot be used ({error.strerror}): give another --port.")


def describe(model: Model, settings: Settings, listener: socket.socket, cores: int) -> str:
    """Says what is served, where and how."""
    version, (host, port) = model.version, listener.getsockname()[:2]
    about = version.about
    kinds = [about.kind or "any", f"{len(about.classes)} classes" if about.classes else ""]
    what = ", ".join([f"version {version.number}", *filter(None, kinds)])
    address = f"[{host}]" if ":" in host else host
    warning = ""
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        warning = (
            f"warning: {host} can be reached by others, and there is no authentication: let a "
            "proxy or a firewall decide who may.\n"
        )
    return (
        f"{warning}serving {version.name} ({what}) on http://{address}:{port}; page at /; "
        f"{cores} threads, batches of up to {settings.max_batch}"
    )


@contextlib.contextmanager
def handling_signals(handler: Callable[..., Any]) -> Iterator[None]:
    """Has SIGTERM and SIGINT call a handler while the block runs."""
    before = {s: signal.signal(s, handler) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def serve(service: Service, listener: socket.socket, settings: Settings) -> None:
    """Runs the event loop until a signal, and until what is in flight is answered."""
    protocol = functools.partial(Connection, settings.request_seconds)
    config = uvicorn.Config(
        service, http=protocol, loop="asyncio", ws="none", lifespan="off",  # type: ignore[arg-type]
        log_config=None, log_level="error", access_log=False, server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=math.ceil(settings.grace_seconds),
    )  # fmt: skip
    Server(config, service).run([listener])


class Server(uvicorn.Server):
    """Uvicorn's server, which a signal only stops; uvicorn's would also be killed by it."""

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
