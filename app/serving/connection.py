"""A client's connection: uvicorn's protocol, with bounds on what comes before a body.

A client may send headers slowly, without end or not at all, or never take its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.serving.answers import problem

MAX_HEADERS = 65536  # bytes


class Connection(HttpToolsProtocol):
    """A client that is refused, and its connection closed, if it goes beyond the bounds.

    Args:
        seconds: for the headers of a request to arrive, and for an answer to be taken.
    """

    def __init__(self, seconds: float, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seconds = seconds
        self._patience: asyncio.TimerHandle | None = None
        self._beside = 0  # bytes since there was progress: headers, trailers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See base class."""
        super().connection_made(transport)
        client = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # the kernel drops a client that takes no answer
            option = int(self._seconds * 1000)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, option)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """See base class."""
        self._wait_no_more()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """See base class."""
        self._wait()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See base class."""
        self._wait_no_more()
        self._beside = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See base class."""
        self._beside = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See base class."""
        self._beside = 0
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """See base class."""
        self._beside += len(data)
        super().data_received(data)
        if self._beside > MAX_HEADERS + len(data):
            self._refuse(431, f"the headers must not be larger than {MAX_HEADERS} bytes.")

    def send_400_response(self, msg: str) -> None:
        """See base class, which answers in plain text."""
        self._refuse(400, "this is not an HTTP/1.1 request.")

    def shutdown(self) -> None:
        """See base class; a connection without a request has a moment to make one."""
        if self.cycle is None or self._patience:
            self.loop.call_later(0.3, super().shutdown)
        else:
            super().shutdown()

    def _wait(self) -> None:
        self._wait_no_more()
        self._patience = self.loop.call_later(self._seconds, self._give_up)

    def _wait_no_more(self) -> None:
        if self._patience:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        self._refuse(408, f"the headers did not arrive within {self._seconds:g} s.")

    def _refuse(self, status: int, sentence: str) -> None:
        """Answers what is no request yet, and closes."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            body = problem(sentence)
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d"
            self.transport.write(STATUS_LINE[status] + head % len(body) + b"\r\n\r\n" + body)
        self.transport.close()
