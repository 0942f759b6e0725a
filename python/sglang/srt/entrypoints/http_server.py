"""The HTTP process: routes, the gate before them (readiness, key, body size), and the server's life from port to exit.

Endpoints' contents are in generate_api.py and openai/; processes and requests in backend.py.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import signal
import socket
import sys
from collections.abc import Callable

import msgspec
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from sglang.srt.entrypoints.backend import PROBE_SECONDS, Backend
from sglang.srt.entrypoints.connections import bind
from sglang.srt.entrypoints.generate_api import GenerateApi, GenerateRequest, item_type
from sglang.srt.entrypoints.openai.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from sglang.srt.entrypoints.openai.serving_chat import ChatApi
from sglang.srt.entrypoints.openai.serving_completions import CompletionsApi
from sglang.srt.entrypoints.profile_api import add_profile_routes
from sglang.srt.entrypoints.replies import (
    EventStream,
    error_reply,
    json_reply,
    read_body,
    reply_unless_gone,
)
from sglang.srt.managers.generation import RequestError
from sglang.srt.managers.process_supervisor import SCHEDULER_MODULE, ChildDied
from sglang.srt.metrics.server_metrics import CONTENT_TYPE
from sglang.srt.server_args import ServerArgs, model_folder
from sglang.srt.utils.child import STARTUP_FAILED, freeze_startup_objects, setup_logging

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 10_000_000
DRAIN_SECONDS = 4.0  # after SIGTERM running requests may finish by themselves
ABORT_SECONDS = 2.0  # then they are aborted, and their answers go out
OPEN_PATHS = ("/health", "/health_generate")  # need no key: load balancers have none
POLLED_PATHS = (*OPEN_PATHS, "/metrics")  # asked for every few seconds: not in the access log
STARTING, READY, STOPPING, FAILED = "starting", "ready", "shutting down", "failing"


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


class HttpServer:
    """One server from the bound port to the exit code."""

    def __init__(self, args: ServerArgs, scheduler_module: str = SCHEDULER_MODULE):
        self.args = args
        self.state = STARTING
        self.backend = Backend(args, self._failed, scheduler_module)
        self._stop = asyncio.Event()
        self._signals = 0
        app = make_app(self.backend)
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                Gate(app, args.api_key, lambda: self.state),
                lifespan="off",
                log_config=None,
                access_log=args.log_level in ("debug", "info"),
                timeout_graceful_shutdown=1,
                timeout_keep_alive=30,
            )
        )

    async def run(self, listener: socket.socket) -> int:
        """Serve until told to stop; the exit code. 0: stopped by a signal, 1: a process died, 2: could not start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        front = asyncio.ensure_future(self._uvicorn.serve(sockets=[listener]))
        starting = asyncio.ensure_future(self._start())
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():  # a signal
                starting.cancel()
            elif exit_code := starting.result():
                return exit_code
            await stopping
            await self._drain()
        finally:
            stopping.cancel()
            self._uvicorn.should_exit = True
            await front
            await asyncio.to_thread(self.backend.end_processes)
            self.backend.shutdown()  # here: the loop may not read a socket while another thread closes it
        return 1 if self.state == FAILED else 0

    async def _start(self) -> int:
        """Bring the backend up. 0 when it is ready to serve."""
        try:
            await asyncio.to_thread(self.backend.launch)
            await self.backend.connect()
            if not self.args.skip_server_warmup:
                await self.backend.warm_up()
        except ChildDied as death:
            if not death.explained:
                _print_error(f"{death} while the server was starting")
            return STARTUP_FAILED
        except (ValueError, OSError) as e:
            _print_error(str(e))
            return STARTUP_FAILED
        except RequestError as e:
            _print_error(f"the warm-up request failed: {e.message}")
            return STARTUP_FAILED
        freeze_startup_objects()
        self.state = READY
        self._announce()
        return 0

    def _announce(self) -> None:
        tokenizer = self.backend.tokenizer
        name = self.backend.manager.info.served_model_name
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.args.host, self.args.host)
        url = f"http://{f'[{host}]' if ':' in host else host}:{self.args.port}"
        if tokenizer is not None and tokenizer.chat_template is not None:
            question = "Tom has 3 boxes with 4 apples each. He eats 2 apples. How many apples are left?"
            path, body = "/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": question}]}
        elif tokenizer is not None:
            path, body = "/v1/completions", {"model": name, "prompt": "The capital of France is", "max_tokens": 16}
        else:
            path, body = "/generate", {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 16}}
        key = " -H 'Authorization: Bearer <your key>'" if self.args.api_key is not None else ""
        data = json.dumps(body).replace("'", "'\\''")
        logger.info("The server is fired up and ready to roll!")
        print(
            f"Serving {name} on {url} after {self.backend.startup_seconds:.1f} s. Try:\n"
            f"  curl -s {url}{path} -H 'Content-Type: application/json'{key} -d '{data}'",
            flush=True,
        )

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals > 1:
            logger.warning("second signal: ending at once")
            self.backend.shutdown()
            sys.exit(1)
        if self.state != FAILED:
            logger.info("shutting down: running requests may finish")
            self.state = STOPPING
        self._stop.set()

    def _failed(self, reason: str) -> None:
        logger.error("%s: the server ends", reason)
        self.state = FAILED
        self._stop.set()

    async def _drain(self) -> None:
        """Let running requests end, by force in the end, so that each client gets its answer."""
        manager = self.backend.manager
        if manager is None or self.state == FAILED:
            return
        if not await _until(lambda: not manager.generations, DRAIN_SECONDS) and self.state != FAILED:
            logger.info("aborting %d requests", manager.abort_all("the server is shutting down"))
            await _until(lambda: not manager.generations or self.state == FAILED, ABORT_SECONDS)


async def _until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll until the condition holds; False when time is up."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(0.02)
    return True


class _Uvicorn(uvicorn.Server):
    """Signals are HttpServer's."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield


def _print_error(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)


def serve(args: ServerArgs, scheduler_module: str = SCHEDULER_MODULE) -> int:
    """Run a server in this process, which must be in its main thread; the exit code."""
    setup_logging(args.log_level, "http")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # start and stop are told in our own words
    logging.getLogger("uvicorn.access").addFilter(lambda record: record.args[2] not in POLLED_PATHS)
    try:
        listener = bind(args.host, args.port)
    except OSError as e:
        _print_error(str(e))
        return STARTUP_FAILED
    if args.model_path is None:
        print(f"No --model-path: serving the model inside the package, {model_folder(args)}", flush=True)

    async def main() -> int:
        return await HttpServer(args, scheduler_module).run(listener)

    with listener:
        return asyncio.run(main())


# ---- routes ---------------------------------------------------------------------------------------------------------


def make_app(backend: Backend) -> FastAPI:
    """All endpoints. The Gate lets requests through only once `backend.manager` is there."""
    app = FastAPI(title="SGLang", openapi_url=None)
    add_error_handlers(app)
    add_generation_routes(app, backend)
    add_information_routes(app, backend)
    add_control_routes(app, backend)
    add_profile_routes(app, backend)
    add_tokenizer_routes(app, backend)
    return app


def add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def request_error(_: Request, error: RequestError) -> Response:
        return error_reply(error)

    @app.exception_handler(RequestValidationError)
    async def query_error(_: Request, error: RequestValidationError) -> Response:
        problem = error.errors()[0]
        field = str(problem["loc"][-1])
        return error_reply(RequestError(f"{field}: {problem['msg']}", param=field))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return error_reply(RequestError(f"{request.method} {request.url.path}: {error.detail}", error.status_code))

    @app.exception_handler(Exception)
    async def internal_error(_: Request, error: Exception) -> Response:
        return error_reply(RequestError(f"internal error: {type(error).__name__}", status=500))  # uvicorn logs it


def add_generation_routes(app: FastAPI, backend: Backend) -> None:
    def add(path: str, body_type: type, api_type: type, methods: list[str]) -> None:
        async def endpoint(request: Request) -> Response:
            body = await read_body(request, body_type)
            api = api_type(backend.manager)
            if body.stream:
                return EventStream(api.events(body), openai_errors=body_type is not GenerateRequest)
            return await reply_unless_gone(request, api.answer(body))

        app.add_api_route(path, endpoint, methods=methods)

    add("/generate", GenerateRequest, GenerateApi, ["POST", "PUT"])
    add("/v1/completions", CompletionRequest, CompletionsApi, ["POST"])
    add("/v1/chat/completions", ChatCompletionRequest, ChatApi, ["POST"])


def add_information_routes(app: FastAPI, backend: Backend) -> None:
    @app.get("/health")
    async def health() -> Response:
        return Response()  # the Gate answers 503 while the server starts or stops

    @app.get("/health_generate")
    async def health_generate() -> Response:
        return Response(status_code=200 if await backend.probe(PROBE_SECONDS) else 503)

    if backend.args.enable_metrics:

        @app.get("/metrics")
        async def metrics() -> Response:
            text = backend.metrics.text(await backend.manager.internal_state())
            return Response(text, media_type=CONTENT_TYPE)

    def add_with_old_name(path: str, answer: Callable) -> None:
        async def endpoint(request: Request) -> Response:
            if request.url.path.startswith("/get_"):
                logger.warning("%s is an old name; use %s", request.url.path, path)
            return json_reply(await answer())

        app.add_api_route(path, endpoint, methods=["GET"])
        app.add_api_route(f"/get_{path[1:]}", endpoint, methods=["GET"])

    async def model_info() -> dict:
        return backend.model_info()

    add_with_old_name("/model_info", model_info)
    add_with_old_name("/server_info", backend.server_info)

    def model_card() -> dict:
        info = backend.manager.info
        name = info.served_model_name
        return {
            "id": name,
            "object": "model",
            "created": int(backend.ready_at),
            "owned_by": "sglang",
            "root": name,
            "parent": None,
            "max_model_len": info.context_length,
        }

    @app.get("/v1/models")
    async def models() -> Response:
        return json_reply({"object": "list", "data": [model_card()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        card = model_card()
        if name != card["id"]:
            raise RequestError(f"the model {name!r} is not served here, only {card['id']!r}", status=404, param="model")
        return json_reply(card)


class AbortRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    rid: str | None = None
    abort_all: bool = False


def add_control_routes(app: FastAPI, backend: Backend) -> None:
    @app.api_route("/flush_cache", methods=["GET", "POST"])
    async def flush_cache(timeout: float = 0.0) -> Response:
        if not 0 <= timeout <= 3600:
            raise RequestError(f"timeout is {timeout}; 0 to 3600 seconds are possible", param="timeout")
        reply = await backend.manager.flush_cache(timeout)
        if reply.success:
            return PlainTextResponse("Cache flushed.\n")
        return PlainTextResponse(f"Cache not flushed: {reply.message}.\n", status_code=400)

    @app.post("/abort_request")
    async def abort_request(request: Request) -> Response:
        body = await read_body(request, AbortRequest)
        if not body.abort_all and not body.rid:
            raise RequestError("give rid, or abort_all: true", param="rid")
        if body.abort_all:
            count = backend.manager.abort_all("aborted by /abort_request")
        else:
            count = backend.manager.abort(body.rid)
        return json_reply({"aborted": count})


def add_tokenizer_routes(app: FastAPI, backend: Backend) -> None:
    @app.post("/tokenize")
    @app.post("/v1/tokenize")
    async def tokenize(request: Request) -> Response:
        body = await read_body(request, TokenizeRequest)
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        ids = [await backend.manager.encode(text, body.add_special_tokens) for text in texts]
        single = isinstance(body.prompt, str)
        return json_reply(
            {
                "tokens": ids[0] if single else ids,
                "count": len(ids[0]) if single else [len(i) for i in ids],
                "max_model_len": backend.manager.info.context_length,
            }
        )

    @app.post("/detokenize")
    @app.post("/v1/detokenize")
    async def detokenize(request: Request) -> Response:
        body = await read_body(request, DetokenizeRequest)
        tokenizer = backend.manager.require_tokenizer()
        single = not body.tokens or item_type(body.tokens, "tokens") is int
        lists = [body.tokens] if single else body.tokens
        for ids in lists:
            if ids:
                backend.manager.check_ids(ids, "tokens")
        texts = [await asyncio.to_thread(tokenizer.decode, ids, body.skip_special_tokens) for ids in lists]
        return json_reply({"text": texts[0] if single else texts})
