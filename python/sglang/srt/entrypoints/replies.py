"""Replies of the HTTP server: JSON, errors in the form of the API that was asked, event streams, and the end of a
request whose client left.

No endpoint is known here, only whose errors look how.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sglang.srt.managers.generation import RequestError

logger = logging.getLogger(__name__)

ERROR_TYPES = {
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "RequestTooLargeError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}
ANTHROPIC_PATHS = "/v1/messages"  # and what begins with it
ANTHROPIC_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
CLIENT_GONE = 499  # nobody reads it; the access log does

_encode = msgspec.json.Encoder().encode  # NaN and infinities become null


def json_reply(value: Any, status: int = 200) -> Response:
    return Response(_encode(value), status, media_type="application/json")


ANSWER_WORK = 50  # of Turns: an answer, beside its rows


class Turns:
    """For long loops on the event loop: others have their turn after so much work, log-probabilities for example."""

    def __init__(self, work: int = 10_000):
        self._work = self._left = work

    async def did(self, work: int) -> None:
        self._left -= work
        if self._left < 0:
            self._left = self._work
            await asyncio.sleep(0)


def error_fields(error: RequestError) -> dict:
    return {
        "message": error.message,
        "type": ERROR_TYPES.get(error.status, "BadRequestError"),
        "param": error.param,
        "code": error.status,
    }


def error_body(error: RequestError, path: str) -> dict:
    """Anthropic's form under its paths, else upstream's two forms in one: flat, as its OpenAI endpoints have it, and
    under `error`, where its native endpoint and OpenAI's own service have it."""
    if path.startswith(ANTHROPIC_PATHS):
        kind = ANTHROPIC_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        details = {"details": error.details} if error.details else {}
        return {"type": "error", "error": {"type": kind, "message": error.message, **details}}
    fields = error_fields(error)
    return {"object": "error", **fields, "error": fields}


def error_reply(error: RequestError, path: str = "") -> Response:
    """The reply to a request for `path`."""
    reply = json_reply(error_body(error, path), error.status)
    if error.status == 401:
        reply.headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413):  # more of the body would follow
        reply.headers["Connection"] = "close"
    if error.status == 503:
        reply.headers["Retry-After"] = "1"
    return reply


def error_event(error: RequestError, path: str) -> bytes:
    """What a stream for `path` ends with that has failed."""
    if path.startswith(ANTHROPIC_PATHS):
        return named_event(error_body(error, path))
    return event({"error": error_fields(error)})


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + _encode(value) + b"\n\n"


def named_event(value: dict) -> bytes:
    """One that is named by the `type` of what it carries."""
    return b"event: " + value["type"].encode() + b"\n" + event(value)


DONE = b"data: [DONE]\n\n"


async def _until_disconnect(receive: Callable[[], Awaitable[dict]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.asynccontextmanager
async def _racing(*coroutines: Awaitable) -> AsyncGenerator[list[asyncio.Task], None]:
    """Run them at once; whatever has not ended when the context does is cancelled and waited for."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def reply_unless_gone(request: Request, work: Awaitable[Any]) -> Response:
    """What `work` returns, as JSON if it is no Response; when the client goes first, `work` is cancelled."""
    async with _racing(work, _until_disconnect(request.receive)) as (answer, _):
        if not answer.done():
            return Response(status_code=CLIENT_GONE)
        result = answer.result()
        return result if isinstance(result, Response) else json_reply(result)


class EventStream(Response):
    """Server-sent events from a generator that yields whole events (bytes). `end` is added.

    The status waits for the first event, so that a refused request gets its own; a later failure is an error event.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], end: bytes = DONE):
        super().__init__()
        self._events = events
        self._end = end

    async def __call__(self, scope, receive, send) -> None:
        async with _racing(self._produce(scope, receive, send), _until_disconnect(receive)) as (producer, _):
            if producer.done():
                producer.result()

    async def _produce(self, scope, receive, send) -> None:
        started, path = False, scope.get("path", "")

        async def write(data: bytes, more: bool = True) -> None:
            nonlocal started
            if not started:
                headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                started = True
            await send({"type": "http.response.body", "body": data, "more_body": more})

        async with contextlib.aclosing(self._events) as events:
            try:
                async for data in events:
                    await write(data)
            except RequestError as e:
                if not started:
                    await error_reply(e, path)(scope, receive, send)
                    return
                await write(error_event(e, path))
        await write(self._end, more=False)
