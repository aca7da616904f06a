"""The model's API as an ASGI application: paths to answers, and every error as one sentence."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from http import HTTPMethod
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.serving import answers
from app.serving.asked import Checks
from app.serving.batching import Batcher
from app.serving.bodies import PLAIN, Bodies, Refusal
from app.serving.content import must_be_json
from app.serving.errors import RequestError
from app.serving.metrics import Metrics
from app.serving.model import Model
from app.serving.origins import allowing
from app.serving.page import Page
from app.serving.verbs import VERBS, Verbs

GONE = 499  # nginx's code for a client that hung up, for the metrics: nobody reads it
MODEL = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[^/:]+))?"
    r"(?::(?P<verb>\w+)|(?P<metadata>/metadata))?"
)
# What the other paths count as.
KINDS = {"/": "page", "/healthz": "health", "/readyz": "health", "/metrics": "metrics",
         "/monitoring/prometheus/metrics": "metrics"}  # fmt: skip


class Service:
    """Answers requests, and counts them."""

    def __init__(
        self, model: Model, batcher: Batcher, checks: Checks, bodies: Bodies,
        origins: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.is_draining = False
        self._model, self._batcher, self._bodies = model, batcher, bodies
        self._verbs = Verbs(model, batcher, checks)
        self._metrics = Metrics(batcher)
        self._page = Page(model)
        routes = [  # the busiest first: they are tried in turn
            Route("/v1/models/{rest:path}", self._of_model, methods=list(HTTPMethod)),
            Route("/", self._show),
            Route("/healthz", self._lives),
            Route("/readyz", self._is_ready),
            Route("/metrics", self._measured),
            Route("/monitoring/prometheus/metrics", self._measured),
        ]
        handlers: dict[Any, Any] = {
            RequestError: self._refused,
            HTTPException: self._refused,
            ClientDisconnect: self._hung_up,
            Exception: self._failed,
        }
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.router.redirect_slashes = False
        self._app: ASGIApp = allowing(origins, app) if origins else app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, and counts it."""
        begin, code = time.monotonic(), GONE

        async def watched(message: Message) -> None:
            nonlocal code
            code = message.get("status", code)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:  # the grace is over
            if code == GONE:
                await Refusal(stopped())(scope, receive, watched)
        finally:
            self._metrics.saw(kind(scope["path"]), code, time.monotonic() - begin)

    async def _of_model(self, request: Request) -> Response:
        """Everything below /v1/models."""
        match = MODEL.fullmatch(request.scope["path"])
        if not match or match["verb"] not in (None, *VERBS):
            raise HTTPException(404)
        allowed = ("POST",) if match["verb"] else ("GET", "HEAD")
        if request.method not in allowed:
            raise HTTPException(405, headers={"Allow": ", ".join(allowed)})
        found = self._model.found
        if match["name"] != found.name:
            raise RequestError(404, f"there is no model {match['name']!r}, but {found.name!r}.")
        if match["version"] not in (None, str(found.version)):
            raise RequestError(
                404, f"model {found.name!r} is served in version {found.version}, not "
                f"{match['version']}.",
            )  # fmt: skip
        if match["metadata"]:
            return answered(answers.metadata(found, self._model.definitions))
        if not match["verb"]:
            return answered(answers.status(found))
        must_be_json(request.headers.get("content-type", ""), found.about.kind)
        async with self._bodies.read(request) as body:
            answer, instances = await self._verbs.answer(request, match["verb"], body)
        self._metrics.instances.inc(instances)
        return answered(answer)

    async def _show(self, request: Request) -> Response:
        return Response(self._page.text, 200, {**PLAIN, **self._page.headers}, "text/html")

    async def _lives(self, request: Request) -> Response:
        return answered('{"status":"lives"}')

    async def _is_ready(self, request: Request) -> Response:
        if self.is_draining:
            raise stopped()
        if self._batcher.is_full:
            raise RequestError(503, "the queue is full.")
        return answered('{"status":"ready"}')

    async def _measured(self, request: Request) -> Response:
        return Response(self._metrics.text(), 200, PLAIN, CONTENT_TYPE_LATEST)

    async def _refused(self, request: Request, error: RequestError | HTTPException) -> Response:
        """Any RequestError, and what Starlette says of paths and methods."""
        if isinstance(error, HTTPException):
            path, method = request.scope["path"][:100], request.method
            sentences = {404: f"there is nothing at {path}.", 405: f"{path} takes no {method}."}
            sentence = sentences.get(error.status_code, f"{error.detail}.")
            error = RequestError(error.status_code, sentence, error.headers)
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        return Refusal(error, getattr(request.state, "is_read", not has_body))

    async def _hung_up(self, request: Request, error: Exception) -> Response:
        return Response(status_code=GONE)

    async def _failed(self, request: Request, error: Exception) -> Response:
        """A bug: its traceback is in the log."""
        return Refusal(RequestError(500, "the server failed, and its log says why."))


def kind(path: str) -> str:
    """What a path counts as; clients cannot make up more."""
    match = MODEL.fullmatch(path)
    if not match:
        return KINDS.get(path, "other")
    if match["verb"]:
        return match["verb"] if match["verb"] in VERBS else "other"
    return "metadata" if match["metadata"] else "status"


def answered(body: bytes | str) -> Response:
    """A fine answer."""
    return Response(body, 200, PLAIN, "application/json")


def stopped() -> RequestError:
    """What is told while the server stops."""
    return RequestError(503, "the server is about to stop.", {"Connection": "close"})
