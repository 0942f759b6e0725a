"""Gate: what every request passes before an endpoint sees it: readiness, the key, and how its body may come."""

import asyncio
import contextlib
import hmac
import uuid
from collections.abc import Callable

from sglang.srt.entrypoints.replies import ANTHROPIC_PATHS, error_reply
from sglang.srt.managers.generation import RequestError

MAX_BODY_BYTES = 10_000_000
MAX_HELD_BYTES = 256_000_000  # bodies of all requests under way together
BODY_SECONDS = 60.0  # from the end of the headers to that of the body
MAX_ID_CHARS = 128  # of X-Request-Id
LINGER_SECONDS = 2.0  # a client that is refused while it sends is listened to for so long, or it could miss the reply
OPEN_PATHS = ("/health", "/health_generate")  # need no key: load balancers have none
STARTING, READY, STOPPING, FAILED = "starting", "ready", "shutting down", "failing"  # states of the server


class Gate:
    """ASGI middleware. Turns away what no endpoint should see, bounds bodies in size, in time and in sum, and answers
    those whose endpoint does not when the server ends."""

    def __init__(self, app: Callable, api_key: str | None, state: Callable[[], str]):
        self._app = app
        self._api_key = None if api_key is None else api_key.encode()
        self._state = state
        self._held = 0
        self._exchanges: set[_Exchange] = set()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        send = _with_request_id(scope, send)
        exchange = _Exchange(self, receive, send)
        self._exchanges.add(exchange)
        try:
            if error := self._refusal(scope["path"], scope["headers"]):
                reply = error_reply(error, scope["path"])
                if error.status == 400:  # a request of unclear length: what follows it can't be trusted
                    reply.headers["Connection"] = "close"
                await reply(scope, exchange.receive, exchange.send)
            else:
                # HEAD is GET to the endpoints; the server below sends no body.
                seen = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
                await self._app(seen, exchange.receive, exchange.send)
        except asyncio.CancelledError:
            if not exchange.overdue:
                raise
            asyncio.current_task().uncancel()
            error = RequestError("the server is shutting down", status=503)
            await error_reply(error, scope["path"])(scope, receive, send)
        finally:
            self._exchanges.discard(exchange)
            self.hold(-exchange.body_bytes)

    def hold(self, count: int) -> None:
        """Count bytes of bodies in memory. Raises RequestError when they are too many."""
        self._held += count
        if count > 0 and self._held > MAX_HELD_BYTES:
            raise RequestError(
                f"the bodies of requests under way have more than {MAX_HELD_BYTES} bytes; try again later", status=503
            )

    @property
    def wants_key(self) -> bool:
        return self._api_key is not None

    @property
    def is_empty(self) -> bool:
        return not self._exchanges

    def answer_the_rest(self) -> int:
        """End the requests whose reply has not begun with a 503; how many there were. For the server's end."""
        waiting = [exchange for exchange in self._exchanges if not exchange.replied]
        for exchange in waiting:
            exchange.overdue = True
            exchange.task.cancel()
        return len(waiting)

    def _refusal(self, path: str, header_list: list[tuple[bytes, bytes]]) -> RequestError | None:
        headers = dict(header_list)
        if b"content-length" in headers and b"transfer-encoding" in headers:
            return RequestError("both Content-Length and Transfer-Encoding are given; send one of them")
        if self._api_key is not None and path not in OPEN_PATHS:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            given = [headers.get(b"x-api-key", b""), key if scheme.lower() == b"bearer" else b""]
            if not any([hmac.compare_digest(key.strip(), self._api_key) for key in given]):
                return RequestError(
                    "missing or wrong API key: send `Authorization: Bearer <key>` or `x-api-key: <key>`", status=401
                )
        if self._state() != READY:
            return RequestError(f"the server is {self._state()}", status=503)
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"", b"identity"):
            shown = encoding[:80].decode("latin-1")
            return RequestError(f"Content-Encoding {shown!r} is not supported; send the body as it is", status=415)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            return _too_large()
        return None


def request_id(given: bytes | None) -> bytes:
    """The client's, where it can stand in a header and a log line; else one made here."""
    if given and len(given) <= MAX_ID_CHARS and all(33 <= char <= 126 for char in given):
        return given
    return uuid.uuid4().hex.encode()


def _with_request_id(scope: dict, send: Callable) -> Callable:
    """`send` that names the request in its reply: X-Request-Id, and Request-Id, which Anthropic's client reads."""
    own = request_id(dict(scope["headers"]).get(b"x-request-id"))
    names = [b"x-request-id", b"request-id"] if scope["path"].startswith(ANTHROPIC_PATHS) else [b"x-request-id"]

    async def send_named(message: dict) -> None:
        if message["type"] == "http.response.start":
            message = message | {"headers": [*message["headers"], *((name, own) for name in names)]}
        await send(message)

    return send_named


class _Exchange:
    """One request and its reply, seen from between the server below and the endpoint above."""

    def __init__(self, gate: Gate, receive: Callable, send: Callable):
        self.task = asyncio.current_task()
        self.body_bytes = 0
        self.replied = False  # the reply has begun
        self.overdue = False  # the server ends and nobody waits for the endpoint any more
        self._gate = gate
        self._receive = receive
        self._send = send
        self._deadline = asyncio.get_running_loop().time() + BODY_SECONDS
        self._body_ended = False
        self._closing = False  # the reply says that the connection will be closed

    async def receive(self) -> dict:
        if self._body_ended:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise RequestError(f"the body did not come within {BODY_SECONDS:g} s", status=408) from None
        self._body_ended = not message.get("more_body", False)
        count = len(message.get("body", b""))
        if self.body_bytes + count > MAX_BODY_BYTES:
            raise _too_large()
        self.body_bytes += count
        self._gate.hold(count)
        return message

    async def send(self, message: dict) -> None:
        if message["type"] == "http.response.start":
            self.replied = True
            self._closing = (b"connection", b"close") in message["headers"]
        elif self._closing and not self._body_ended and not message.get("more_body", False):
            # A socket closed while data comes in resets the connection, and the client may lose the reply.
            await self._send({**message, "more_body": True})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    while (await self._receive()).get("more_body", False):
                        pass
            message = {"type": "http.response.body"}
        await self._send(message)


def _too_large() -> RequestError:
    return RequestError(f"the body is larger than {MAX_BODY_BYTES} bytes", status=413)
