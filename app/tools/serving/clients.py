"""Clients of a server: each sends a request, waits for the answer, and sends the next.

They share the machine with the server they measure, so they are as light as can be: one thread, and
requests that were written before.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import NamedTuple

import httptools


class Answer(NamedTuple):
    """What came back for a request, `end` seconds after all began."""

    request: int
    begin: float
    end: float
    status: int
    body: bytes


def written(name: str, raw: bytes, kind: str) -> bytes:
    """The HTTP request that asks model `name` about one image file or text."""
    instance = {"b64": b64encode(raw).decode()} if kind == "image" else raw.decode()
    body = json.dumps({"instances": [instance]}).encode()
    head = f"POST /v1/models/{name}:predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def each_once(port: int, requests: Sequence[bytes]) -> list[Answer]:
    """One client asks everything in order.

    Raises:
        ConnectionError: the server closed a connection.
    """
    order = iter(range(len(requests)))
    return asyncio.run(_ask(port, requests, 1, lambda client, now: next(order, None)))


def for_a_while(
    port: int, requests: Sequence[bytes], clients: int, seconds: float, seed: int
) -> list[Answer]:
    """So many clients ask at random; none begins a request after `seconds`.

    Raises:
        ConnectionError: the server closed a connection.
    """
    chance = [random.Random(f"{seed} {client}") for client in range(clients)]

    def choose(client: int, now: float) -> int | None:
        return chance[client].randrange(len(requests)) if now < seconds else None

    return asyncio.run(_ask(port, requests, clients, choose))


async def _ask(
    port: int,
    requests: Sequence[bytes],
    clients: int,
    choose: Callable[[int, float], int | None],
) -> list[Answer]:
    answers: list[Answer] = []
    begin = time.perf_counter()
    loop = asyncio.get_running_loop()

    def client(number: int) -> Client:
        return Client(requests, lambda now: choose(number, now), answers.append, begin)

    pairs = [
        await loop.create_connection(lambda number=k: client(number), "127.0.0.1", port)  # type: ignore[misc]
        for k in range(clients)
    ]
    await asyncio.gather(*[protocol.done for _, protocol in pairs])
    return answers


class Client(asyncio.Protocol):
    """A connection that is kept.

    Args:
        requests: that can be asked.
        choose: the number of the next at a time, None: enough.
        told: is told every answer.
        begin: of all.
    """

    def __init__(
        self,
        requests: Sequence[bytes],
        choose: Callable[[float], int | None],
        told: Callable[[Answer], None],
        begin: float,
    ) -> None:
        self._requests, self._choose, self._told, self._begin = requests, choose, told, begin
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See base class."""
        self._transport = transport
        self._next(time.perf_counter() - self._begin)

    def data_received(self, data: bytes) -> None:
        """See base class."""
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """See base class."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed a connection"))

    def on_body(self, body: bytes) -> None:
        """A part of an answer; called by the parser."""
        self._body += body

    def on_message_complete(self) -> None:
        """All of an answer is here; called by the parser."""
        now = time.perf_counter() - self._begin
        status = self._parser.get_status_code()
        self._told(Answer(self._asked, self._since, now, status, self._body))
        self._next(now)

    def _next(self, now: float) -> None:
        asked = self._choose(now)
        if asked is None:
            self.done.set_result(None)
            self._transport.close()
            return
        self._asked, self._since, self._body = asked, now, b""
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(self._requests[asked])
