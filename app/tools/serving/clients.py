"""Clients of a server: each sends a request, waits for the answer, and sends the next.

They share the machine with the server they measure, so they are light: one thread, requests that
were encoded before, and of the headers of an answer only its length is read.
"""

import asyncio
import contextlib
import json
import random
import re
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import NamedTuple

LENGTH = re.compile(rb"(?im)^content-length: *(\d+)")  # every answer of ours has one
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
    begin = time.perf_counter()
    every = [_send_one_by_one(port, requests, i, choose, begin) for i in range(clients)]
    return [answer for answers in await asyncio.gather(*every) for answer in answers]


async def _send_one_by_one(
    port: int, requests: Sequence[bytes], client: int, choose: Choose, begin: float
) -> list[Answer]:
    """Sends the requests that a client chooses, on one connection; returns the answers."""
    answers: list[Answer] = []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        while (request := choose(client, since := time.perf_counter() - begin)) is not None:
            writer.write(requests[request])
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(int(LENGTH.findall(head)[0]))
            except asyncio.IncompleteReadError:
                raise ConnectionError("the server closed a connection") from None
            end, status = time.perf_counter() - begin, int(head.split(maxsplit=2)[1])
            answers.append(Answer(request, since, end, status, body))
    return answers
