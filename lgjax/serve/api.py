"""The HTTP API: OpenAI's chat completions about a picture, health, metrics, and what describes it all."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

import fastapi
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lgjax import __version__
from lgjax.infer.answer import Phrase
from lgjax.infer.request import Model
from lgjax.infer.stream import Done, Event, Found, Words
from lgjax.serve import schema
from lgjax.serve.limits import BadQuestion, Limits, TooLarge, reading
from lgjax.serve.metrics import Metrics
from lgjax.serve.queue import Busy, Desk, Question, Stopping, Ticket

DESCRIPTION = """Grounded visual chat: the phrases of an answer have boxes and masks.

Any client of OpenAI's chat completions works, but a system message is refused: the model was trained with
one of its own, which cannot be changed. The picture is a data URL in the first message; `regions` of a
message say what its `%` stand for; the answer's `phrases` are extra fields of its message.
"""
_COMPONENT = "#/components/schemas/{model}"
_LOOK_SECONDS = 0.25  # between two looks whether a silent client is still there
_DRAIN = 4  # times the limit of an upload are read and thrown away, so that its sender hears why
_UPLOAD_SECONDS = 120  # in which the body of a request must have come
_NO_CACHE = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_LONGEST_FAULT = 360  # characters
_CODES = {401: "invalid_api_key", 404: "unknown_url", 429: "rate_limit_exceeded"}
_OWN_FAULT = "a fault of the server; its log says more"
_SCHEMA_FAULTS = {
    "json_invalid": "the body is no JSON",
    "model_attributes_type": "{place}: no JSON object with the header 'Content-Type: application/json'",
    "extra_forbidden": "{place}: there is no such field; /docs lists those there are",
}
_log = logging.getLogger("lgjax.serve")
_FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.FaultResponse, "description": what}
    for status, what in {
        400: "The question makes no sense",
        401: "The bearer token is missing or wrong",
        404: "No such model",
        408: "The request did not come in time",
        413: "Over a limit of size",
        422: "Not the JSON that is described here",
        429: "The queue is full; Retry-After says when to try again",
        500: "A fault of the server",
        503: "The server is stopping",
    }.items()
}


class _Refused(Exception):
    """A request that gets a fault for an answer."""

    def __init__(
        self, status: int, message: str, headers: dict[str, str] | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code or _CODES.get(status)
        self.headers = headers

    @property
    def body(self) -> schema.Fault:
        """The fault as JSON says it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        message = " ".join(str(self).split())  # what was sent may stand in it, and may be megabytes
        if len(message) > _LONGEST_FAULT:
            message = message[:_LONGEST_FAULT] + "..."
        return schema.Fault(message=message, type=kind, code=self.code)


def create_app(
    model: Model, name: str, *, limits: Limits | None = None, token: str | None = None
) -> fastapi.FastAPI:
    """Make the ASGI application that answers with `model`, called `name`.

    With a `token`, requests need it as a bearer token, but for /healthz and the description. `app.state.desk`
    is the queue.
    """
    limits = limits or Limits()
    metrics = Metrics()
    desk = Desk(model, limits, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
        desk.start()
        yield
        await asyncio.to_thread(desk.close)

    def allow(
        given: Annotated[HTTPAuthorizationCredentials | None, fastapi.Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        found = given.credentials.encode("latin-1") if given else b""  # as headers are read
        if token is None or not hmac.compare_digest(found, token.encode()):
            how = "send the header 'Authorization: Bearer TOKEN'"
            raise _Refused(401, f"wrong or no token; {how}", {"WWW-Authenticate": "Bearer"})

    described = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "lgjax"}

    def no_model(asked: str | None) -> _Refused:
        message = f"there is no model '{str(asked)[:80]}'; this server has '{name}'"
        return _Refused(404, message, code="model_not_found")

    app = fastapi.FastAPI(title="lgjax", version=__version__, description=DESCRIPTION, lifespan=lifespan)
    app.state.desk = desk
    app.add_middleware(_Gate, limits=limits, metrics=metrics)
    app.add_exception_handler(_Refused, _answer_fault)
    app.add_exception_handler(HTTPException, _answer_fault)
    app.add_exception_handler(RequestValidationError, _answer_fault)
    app.add_exception_handler(Exception, _answer_fault)
    allowed = [] if token is None else [fastapi.Depends(allow)]

    @app.get("/healthz", responses={503: {"description": "Stopping"}})
    def health(response: Response) -> dict[str, str | int]:
        """Say whether questions are taken."""
        response.status_code = 503 if desk.closing else 200
        return {"status": "stopping" if desk.closing else "ok", "model": name, "waiting": desk.waiting}

    @app.get("/metrics", dependencies=allowed, responses={401: _FAULTS[401]}, response_class=Response)
    def numbers() -> Response:
        """Numbers for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", dependencies=allowed, responses={401: _FAULTS[401]})
    def models() -> dict[str, Any]:
        """List the one model."""
        return {"object": "list", "data": [described]}

    @app.get(
        "/v1/models/{asked:path}", dependencies=allowed, responses={404: _FAULTS[404], 401: _FAULTS[401]}
    )
    def one_model(asked: str) -> dict[str, Any]:
        """Describe the one model."""
        if asked != name:
            raise no_model(asked)
        return described

    @app.post(
        "/v1/chat/completions",
        dependencies=allowed,
        response_model=schema.ChatResponse,
        responses={
            **_FAULTS,
            200: {
                "model": schema.ChatResponse,
                "content": {
                    "text/event-stream": {"schema": {"$ref": _COMPONENT.format(model=schema.Chunk.__name__)}}
                },
                "description": "Answer",
            },
        },
    )
    async def chat(body: schema.ChatRequest, request: fastapi.Request) -> Any:
        """Answer the last message; with `stream`, as server-sent events."""
        if body.model not in (None, name):
            raise no_model(body.model)
        try:
            with reading():
                question = await asyncio.to_thread(body.question, limits)
        except BadQuestion as error:
            raise _fault(error) from error
        listener = _Listener(desk, question, name)
        if body.stream:
            first = await listener.next(request)
            if isinstance(first, Exception):
                raise _fault(first) from first
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            lines = listener.lines(first, with_usage)
            return StreamingResponse(lines, media_type="text/event-stream", headers=_NO_CACHE)
        while True:
            event = await listener.next(request)
            if isinstance(event, Exception):
                raise _fault(event) from event
            if isinstance(event, schema.ChatResponse):
                return event

    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]

    @app.api_route("/v1/{path:path}", methods=methods, dependencies=allowed, include_in_schema=False)
    def nothing(path: str, request: fastapi.Request) -> None:
        """Refuse in OpenAI's shape what the page, which takes every other path, would answer."""
        how = {"chat/completions": "POST", "models": "GET"}.get("models" if path[:7] == "models/" else path)
        if how is not None:
            message = f"/v1/{path} is for {how}, not {request.method}; see /docs"
            raise _Refused(405, message, {"Allow": how})
        raise _Refused(404, f"there is no /v1/{path}; /docs lists what there is")

    generated = app.openapi

    def described_api() -> dict[str, Any]:
        """The description with what the lines of a stream hold, which no type of a response says."""
        out = generated()
        chunk = schema.Chunk.model_json_schema(ref_template=_COMPONENT)
        out["components"]["schemas"] |= {**chunk.pop("$defs", {}), "Chunk": chunk}
        return out

    app.openapi = described_api
    return app


class _Listener:
    """One client at the desk. What it is told is made ready for the wire on the desk's thread."""

    def __init__(self, desk: Desk, question: Question, model: str) -> None:
        self._desk = desk
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "seed": question.options.seed,
        }
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Queue[Exception | schema.ChatResponse | list[schema.Chunk]] = asyncio.Queue()
        self._ticket = Ticket(question, self._tell)
        try:
            desk.submit(self._ticket)
        except (Busy, Stopping) as error:
            raise _fault(error) from error

    def _tell(self, event: Event | Exception) -> None:
        if self._ticket.question.live and not isinstance(event, Exception):
            ready = self._chunks(event)
        else:
            ready = self._response(event) if isinstance(event, Done) else event
        if not isinstance(ready, Words | Found | Done):
            self._loop.call_soon_threadsafe(self._told.put_nowait, ready)

    def _response(self, done: Done) -> schema.ChatResponse:
        answer = done.answer
        choice = schema.Choice(message=schema.message_of(answer), finish_reason=schema.finish_reason(answer))
        tokens = schema.usage(answer, self._ticket.prompt_tokens)
        return schema.ChatResponse(**self._head, choices=[choice], usage=tokens)

    def _chunks(self, event: Event) -> list[schema.Chunk]:
        if isinstance(event, Words):
            return [self._chunk(schema.Delta(content=event.text))]
        if isinstance(event, Found):
            return [self._chunk(schema.Delta(phrases=[_numbered(event.number, event.phrase)]))]
        answer = event.answer
        phrases = [_numbered(number, phrase) for number, phrase in enumerate(answer.phrases)]
        whole = schema.message_of(answer)
        delta = schema.Delta(remembered=whole.remembered, phrases=phrases, region_mask=whole.region_mask)
        last = self._chunk(delta)
        last.choices[0].finish_reason = schema.finish_reason(answer)
        tokens = schema.usage(answer, self._ticket.prompt_tokens)
        return [last, schema.Chunk(**self._head, choices=[], usage=tokens)]

    def _chunk(self, delta: schema.Delta) -> schema.Chunk:
        return schema.Chunk(**self._head, choices=[schema.ChunkChoice(delta=delta)])

    async def next(self, request: fastapi.Request) -> Exception | schema.ChatResponse | list[schema.Chunk]:
        """What comes next; a client that goes away meanwhile gives its place back."""
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    return await asyncio.wait_for(self._told.get(), _LOOK_SECONDS)
                if await request.is_disconnected():
                    raise _Refused(499, "the client has gone")  # nobody reads it
        except BaseException:
            self._desk.leave(self._ticket)
            raise

    async def lines(self, first: Any, with_usage: bool) -> AsyncIterator[str]:
        """Server-sent events from the first chunks on."""
        try:
            yield _line(self._chunk(schema.Delta(role="assistant", content="")))
            told: Any = first
            while True:
                if isinstance(told, Exception):
                    yield _line(schema.FaultResponse(error=_fault(told).body))
                    break
                for chunk in told:
                    if chunk.choices or with_usage:
                        yield _line(chunk)
                if not told[-1].choices:
                    yield "data: [DONE]\n\n"
                    break
                told = await self._told.get()
        finally:
            self._desk.leave(self._ticket)


def _line(model: schema.BaseModel) -> str:
    return f"data: {model.model_dump_json(exclude_none=True)}\n\n"


def _numbered(number: int, phrase: Phrase) -> schema.NumberedPhrase:
    return schema.NumberedPhrase(index=number, **phrase.to_json())


def _fault(error: Exception) -> _Refused:
    """The answer to a request that failed with `error`."""
    if isinstance(error, TooLarge):
        return _Refused(413, str(error))
    if isinstance(error, BadQuestion):
        return _Refused(400, str(error))
    if isinstance(error, Busy):
        return _Refused(429, str(error), {"Retry-After": str(error.seconds)})
    if isinstance(error, Stopping):
        return _Refused(503, str(error))
    _log.error("a question failed", exc_info=error)
    return _Refused(500, _OWN_FAULT)


async def _answer_fault(request: fastapi.Request, error: Exception) -> JSONResponse:
    """Every fault in OpenAI's shape."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]  # what was sent is not repeated: it may be megabytes
        place = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
        error = _Refused(
            422, _SCHEMA_FAULTS.get(first["type"], "{place}: {msg}").format(place=place, **first)
        )
    elif isinstance(error, HTTPException):
        error = _Refused(error.status_code, str(error.detail), dict(error.headers or {}))
    elif not isinstance(error, _Refused):
        error = _Refused(500, _OWN_FAULT)  # raised again behind this, so it is logged
    content = schema.FaultResponse(error=error.body).model_dump()
    return JSONResponse(content, error.status, error.headers)


class _Gate:
    """Refuses bodies over the limits while they come, and counts requests by status.

    Of the API's requests, half-sent ones among them, only so many are let in at a time; the web server's own
    limit, which says less, is higher.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self._app = app
        self._limit = limits.upload_bytes
        self._most = 2 * limits.waiting + limits.batch
        self._inside = 0
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        read = 0
        begun = False
        own = scope["path"].startswith("/v1/")
        full = own and self._inside >= self._most
        end = asyncio.get_running_loop().time() + _UPLOAD_SECONDS if own else None

        async def part() -> Message:
            nonlocal read, end
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(408, f"the request did not come within {_UPLOAD_SECONDS} s") from error
            read += len(message.get("body", b""))
            end = end if message.get("more_body") else None  # from then on it is the client who waits
            return message

        async def bounded() -> Message:
            if full:
                raise HTTPException(429, "the server is busy; try again in 1 s", {"Retry-After": "1"})
            message = await part()
            if read <= self._limit:
                return message
            while message.get("more_body") and read <= _DRAIN * self._limit:
                message = await part()
            raise HTTPException(413, f"the request has more than {self._limit} bytes; send a smaller picture")

        async def counting(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._metrics.requests.labels(str(message["status"])).inc()
            await send(message)

        self._inside += own
        try:
            await self._app(scope, bounded, counting)
        except Exception:
            if not begun:  # what nobody foresaw is answered outside of this gate
                self._metrics.requests.labels("500").inc()
            raise
        finally:
            self._inside -= own
