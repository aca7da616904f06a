"""Clients of a server: each sends a request, waits for the answer, and sends the next.

They share the machine with the server they measure, so they are as light as can be: one thread, and
requests that were encoded before.
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

Choose = Callable[[int, float], int | None]  # (client, seconds): the next request; None: no more


class Answer(NamedTuple):
    """The answer to a request; `begin` and `end` are seconds after all began."""

    request: int
    begin: float
    end: float
    status: int
    body: bytes


def encode(name: str, raw: bytes, kind: str) -> bytes:
    """Returns the HTTP request to model `name` for one image file or text."""
    instance = {"b64": b64encode(raw).decode()} if kind == "image" else raw.decode()
    body = json.dumps({"instances": [instance]}).encode()
    head = f"POST /v1/models/{name}:predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def send_each_once(port: int, requests: Sequence[bytes]) -> list[Answer]:
    """Sends all requests in order, from one client.

    Raises:
        ConnectionError: the server closed a connection.
    """
    order = iter(range(len(requests)))
    return asyncio.run(_send(port, requests, 1, lambda client, now: next(order, None)))


def send_for(
    port: int, requests: Sequence[bytes], clients: int, seconds: float, seed: int
) -> list[Answer]:
    """Sends requests at random, from several clients; none begins one after `seconds`.

    Raises:
        ConnectionError: the server closed a connection.
    """
    generators = [random.Random(f"{seed} {client}") for client in range(clients)]

    def choose(client: int, now: float) -> int | None:
        return generators[client].randrange(len(requests)) if now < seconds else None

    return asyncio.run(_send(port, requests, clients, choose))


async def _send(port: int, requests: Sequence[bytes], clients: int, choose: Choose) -> list[Answer]:
    begin, loop = time.perf_counter(), asyncio.get_running_loop()
    protocols = [Client(i, requests, choose, begin) for i in range(clients)]
    for protocol in protocols:
        await loop.create_connection(lambda p=protocol: p, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.gather(*[protocol.done for protocol in protocols])
    return [answer for protocol in protocols for answer in protocol.answers]


class Client(asyncio.Protocol):
    """A client on one connection, which is kept.

    Args:
        number: of the client.
        requests: that can be sent.
        choose: the next of them.
        begin: of all clients.
    """

    def __init__(
        self, number: int, requests: Sequence[bytes], choose: Choose, begin: float
    ) -> None:
        self._number, self._requests, self._choose, self._begin = number, requests, choose, begin
        self.answers: list[Answer] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See base class."""
        self._transport = transport
        self._send_next(time.perf_counter() - self._begin)

    def data_received(self, data: bytes) -> None:
        """See base class."""
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """See base class."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed a connection"))

    def on_body(self, body: bytes) -> None:
        """Takes a part of an answer; called by the parser."""
        self._body += body

    def on_message_complete(self) -> None:
        """Takes note of a whole answer, and sends the next request; called by the parser."""
        now, status = time.perf_counter() - self._begin, self._parser.get_status_code()
        self.answers.append(Answer(self._request, self._sent_at, now, status, self._body))
        self._send_next(now)

    def _send_next(self, now: float) -> None:
        request = self._choose(self._number, now)
        if request is None:
            self.done.set_result(None)
            self._transport.close()
            return
        self._request, self._sent_at, self._body = request, now, b""
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(self._requests[request])
