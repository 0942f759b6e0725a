"""Gate: what every request passes before an endpoint sees it: readiness, the key, the body's size."""

import hmac
from collections.abc import Callable

from sglang.srt.entrypoints.replies import error_reply
from sglang.srt.managers.generation import RequestError

MAX_BODY_BYTES = 10_000_000
OPEN_PATHS = ("/health", "/health_generate")  # need no key: load balancers have none
STARTING, READY, STOPPING, FAILED = "starting", "ready", "shutting down", "failing"  # states of the server


class Gate:
    """ASGI middleware: turns away what no endpoint should see, and keeps bodies below MAX_BODY_BYTES."""

    def __init__(self, app: Callable, api_key: str | None, state: Callable[[], str]):
        self._app = app
        self._api_key = None if api_key is None else api_key.encode()
        self._state = state

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        if error := self._refusal(scope["path"], headers):
            return await error_reply(error)(scope, receive, send)
        seen = 0

        async def bounded_receive() -> dict:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY_BYTES:
                raise _too_large()
            return message

        return await self._app(scope, bounded_receive, send)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> RequestError | None:
        if self._api_key is not None and path not in OPEN_PATHS:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._api_key):
                return RequestError("missing or wrong API key: send `Authorization: Bearer <key>`", status=401)
        if self._state() != READY:
            return RequestError(f"the server is {self._state()}", status=503)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            return _too_large()
        return None


def _too_large() -> RequestError:
    return RequestError(f"the body is larger than {MAX_BODY_BYTES} bytes", status=413)
