"""Answers HTTP requests: an ASGI application with TensorFlow Serving's paths and some more.

`Service._predict` leads a prediction from its body through codec.py, batching.py and model.py to
its answer; before it comes connection.py.
"""

import asyncio
import functools
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.serving import codec, errors, page
from app.serving.batching import Batcher
from app.serving.codec import Inputs
from app.serving.connection import HEADERS, BodyReader, ErrorResponse, check_media_type
from app.serving.errors import RequestError
from app.serving.metrics import Metrics
from app.serving.model import Model, Tensors
from app.serving.tensors import InputCheck

VERBS = ("predict", "classify", "regress")
HUNG_UP = 499  # nginx's code for a client that hung up, for the metrics: nobody reads it
LARGE = 65536  # bytes of JSON, above which another thread reads or writes it


class PathPart(StringConvertor):
    """A name or a version in a path, without the verb that may follow after a colon."""

    regex = "[^/:]+"


register_url_convertor("part", PathPart())


class Service:
    """Answers requests, and counts them.

    Args:
        model: that is served.
        batcher: computes its requests.
        check: of images or texts, before they are computed.
        bodies: reads the bodies of requests.
        origins: of web pages that may send requests (CORS); "*": all.
    """

    def __init__(
        self, model: Model, batcher: Batcher, check: InputCheck, bodies: BodyReader,
        origins: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.is_draining = False
        self._model, self._batcher, self._check, self._bodies = model, batcher, check, bodies
        self._json_thread = ThreadPoolExecutor(1, "json")
        self._metrics = Metrics(batcher)
        self._page = page.render(model)
        self._routes = self._make_routes()
        handlers: dict[Any, Any] = {
            RequestError: self._on_error,
            HTTPException: self._on_error,
            ClientDisconnect: self._on_hang_up,
            Exception: self._on_bug,
        }
        app = Starlette(routes=self._routes, exception_handlers=handlers)
        app.router.redirect_slashes = False
        cross_origin = CORSMiddleware(
            app, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=["Retry-After"],
        )  # fmt: skip
        self._app: ASGIApp = cross_origin if origins else app

    def _make_routes(self) -> list[Route]:
        """Returns the paths, the busiest first; their names are the kinds that metrics count."""
        newest = "/v1/models/{name:part}"
        routes = []
        for model in (newest, newest + "/versions/{version:part}"):
            for verb in VERBS:
                predict = functools.partial(self._predict, verb)
                routes.append(Route(f"{model}:{verb}", predict, methods=["POST"], name=verb))
            routes.append(Route(model, self._show_status, name="status"))
            routes.append(Route(f"{model}/metadata", self._show_metadata, name="metadata"))
        return [
            *routes,
            Route("/", self._show_page, name="page"),
            Route("/healthz", self._show_liveness, name="health"),
            Route("/readyz", self._show_readiness, name="health"),
            Route("/metrics", self._show_metrics, name="metrics"),
            Route("/monitoring/prometheus/metrics", self._show_metrics, name="metrics"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, and counts it."""
        begin, code = time.monotonic(), HUNG_UP

        async def send_and_note(message: Message) -> None:
            nonlocal code
            code = message.get("status", code)
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except asyncio.CancelledError:  # the grace is over
            if code == HUNG_UP:
                await ErrorResponse(errors.STOPPING())(scope, receive, send_and_note)
        finally:
            self._metrics.count(self._kind(scope), code, time.monotonic() - begin)

    def _kind(self, scope: Scope) -> str:
        """Returns what a request counts as; no path adds a kind to these."""
        matching = (r.name for r in self._routes if r.matches(scope)[0] is not Match.NONE)
        return next(matching, "other")

    async def _predict(self, verb: str, request: Request) -> Response:
        """Answers `:predict`, `:classify` and `:regress`."""
        self._check_path(request)
        check_media_type(request, self._model.version.about.kind)
        signatures, check = self._model.signatures, self._check
        async with self._bodies.read(request) as body:
            inputs = await self._convert(len(body), codec.decode, body, verb, signatures, check)
            outputs = await self._compute(request, inputs)
            size = 8 * sum(y.size for y in outputs.values())
            answer = await self._convert(size, codec.encode, verb, outputs, inputs.by_rows)
        self._metrics.instances.inc(inputs.rows or 1)
        return _json_response(answer)

    async def _convert(self, size: int, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function of the codec, in another thread if its JSON is large."""
        if size <= LARGE:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._json_thread, function, *args)

    async def _compute(self, request: Request, inputs: Inputs) -> Tensors:
        """Waits for the outputs, or for the client to hang up."""
        outputs = self._batcher.submit(inputs)
        gone: asyncio.Future[Message] = asyncio.ensure_future(request.receive())
        gone.add_done_callback(lambda _: outputs.cancel())
        try:
            return await outputs
        except asyncio.CancelledError:
            outputs.cancel()
            if gone.done() and not gone.cancelled():
                raise ClientDisconnect from None
            raise
        finally:
            gone.cancel()

    async def _show_status(self, request: Request) -> Response:
        self._check_path(request)
        fine = {"error_code": "OK", "error_message": ""}
        number = str(self._model.version.number)
        version = {"version": number, "state": "AVAILABLE", "status": fine}
        return _json_response(json.dumps({"model_version_status": [version]}, indent=1))

    async def _show_metadata(self, request: Request) -> Response:
        """Answers with the SignatureDefs, as protocol buffers are written in JSON."""
        from google.protobuf import json_format

        self._check_path(request)
        version = self._model.version
        signatures = {
            name: json_format.MessageToDict(
                definition, preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
            for name, definition in sorted(self._model.definitions.items())
        }  # fmt: skip
        spec = {"name": version.name, "signature_name": "", "version": str(version.number)}
        metadata = {"signature_def": {"signature_def": signatures}}
        return _json_response(json.dumps({"model_spec": spec, "metadata": metadata}, indent=1))

    def _check_path(self, request: Request) -> None:
        served, path = self._model.version, request.path_params
        if path["name"] != served.name:
            raise errors.NO_SUCH_MODEL(name=path["name"], served=served.name)
        version = path.get("version", str(served.number))
        if version != str(served.number):
            raise errors.NO_SUCH_VERSION(name=served.name, served=served.number, version=version)

    async def _show_page(self, request: Request) -> Response:
        text, headers = self._page
        return Response(text, 200, {**HEADERS, **headers}, "text/html")

    async def _show_liveness(self, request: Request) -> Response:
        return _json_response('{"status":"lives"}')

    async def _show_readiness(self, request: Request) -> Response:
        if self.is_draining:
            raise errors.STOPPING()
        if self._batcher.is_full:
            raise errors.BUSY()
        return _json_response('{"status":"ready"}')

    async def _show_metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), 200, HEADERS, CONTENT_TYPE_LATEST)

    async def _on_error(self, request: Request, error: RequestError | HTTPException) -> Response:
        """Answers any RequestError, and what Starlette raises about paths and methods."""
        if isinstance(error, HTTPException):
            path = request.scope["path"][:100]
            message = errors.WRONG_METHOD if error.status_code == 405 else errors.NOT_FOUND
            found = message(path=path, method=request.method)
            error = RequestError(found.status, found.sentence, error.headers)
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        return ErrorResponse(error, getattr(request.state, "is_read", not has_body))

    async def _on_hang_up(self, request: Request, error: Exception) -> Response:
        return Response(status_code=HUNG_UP)

    async def _on_bug(self, request: Request, error: Exception) -> Response:
        """Answers in general words; the traceback is in the log."""
        return ErrorResponse(errors.FAILED())


def _json_response(body: bytes | str) -> Response:
    return Response(body, 200, HEADERS, "application/json")
