"""Routes: which path is answered by what. Contents are in generate_api.py, openai/, anthropic/ and
profile_api.py."""

import logging
from collections.abc import Callable

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response

from sglang.srt.entrypoints.anthropic.protocol import CountTokensRequest, MessagesRequest
from sglang.srt.entrypoints.anthropic.serving_messages import MessagesApi
from sglang.srt.entrypoints.backend import Backend
from sglang.srt.entrypoints.bodies import read_body
from sglang.srt.entrypoints.generate_api import GenerateApi, GenerateRequest
from sglang.srt.entrypoints.openai.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
)
from sglang.srt.entrypoints.openai.response_items import ResponsesRequest
from sglang.srt.entrypoints.openai.response_store import ResponseStore
from sglang.srt.entrypoints.openai.serving_chat import ChatApi
from sglang.srt.entrypoints.openai.serving_completions import CompletionsApi
from sglang.srt.entrypoints.openai.serving_responses import ResponsesApi
from sglang.srt.entrypoints.profile_api import add_profile_routes
from sglang.srt.entrypoints.replies import (
    CLIENT_GONE,
    DONE,
    EventStream,
    error_reply,
    json_reply,
    reply_unless_gone,
)
from sglang.srt.entrypoints.tokenizer_api import (
    DetokenizeRequest,
    TokenizeRequest,
    detokenize_answer,
    tokenize_answer,
)
from sglang.srt.managers.generation import RequestError
from sglang.srt.metrics.server_metrics import CONTENT_TYPE
from sglang.srt.utils.shown import cut, shown

logger = logging.getLogger(__name__)


def make_app(backend: Backend) -> FastAPI:
    """All endpoints. The Gate lets requests through only once `backend.manager` is there."""
    app = FastAPI(title="SGLang", openapi_url=None)
    add_error_handlers(app)
    add_generation_routes(app, backend)
    add_refusals(app, backend)
    add_information_routes(app, backend)
    add_control_routes(app, backend)
    add_profile_routes(app, backend)
    add_tokenizer_routes(app, backend)
    return app


def add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def request_error(request: Request, error: RequestError) -> Response:
        return error_reply(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def query_error(request: Request, error: RequestValidationError) -> Response:
        problem = error.errors()[0]
        field = str(problem["loc"][-1])
        return error_reply(RequestError(f"{field}: {problem['msg']}", param=field), request.url.path)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        return error_reply(RequestError(f"{request.method} {cut(path)}: {error.detail}", error.status_code), path)

    @app.exception_handler(ClientDisconnect)
    async def client_gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_GONE)  # it left while it sent its body

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> Response:
        shown_error = RequestError(f"internal error: {type(error).__name__}", status=500)  # uvicorn logs it
        return error_reply(shown_error, request.url.path)


def add_generation_routes(app: FastAPI, backend: Backend) -> None:
    def add(path: str, body_type: type, make_api: Callable, methods: list[str], end: bytes = DONE) -> None:
        async def endpoint(request: Request) -> Response:
            body = await read_body(request, body_type)
            api = make_api()
            if body.stream:
                return EventStream(api.events(body), end)
            return await reply_unless_gone(request, api.answer(body))

        app.add_api_route(path, endpoint, methods=methods)

    add("/generate", GenerateRequest, lambda: GenerateApi(backend.manager), ["POST", "PUT"])
    add("/v1/completions", CompletionRequest, lambda: CompletionsApi(backend.manager), ["POST"])
    add("/v1/chat/completions", ChatCompletionRequest, lambda: ChatApi(backend.conversation), ["POST"])
    store = ResponseStore()
    add("/v1/responses", ResponsesRequest, lambda: ResponsesApi(backend.conversation, store), ["POST"], end=b"")

    @app.get("/v1/responses/{id}")
    async def response(id: str) -> Response:
        return Response(store.get(id).response, media_type="application/json")

    @app.delete("/v1/responses/{id}")
    async def delete_response(id: str) -> Response:
        store.delete(id)
        return json_reply({"id": id, "object": "response", "deleted": True})

    add("/v1/messages", MessagesRequest, lambda: MessagesApi(backend.conversation), ["POST"], end=b"")

    @app.post("/v1/messages/count_tokens")
    async def count_tokens(request: Request) -> Response:
        body = await read_body(request, CountTokensRequest)
        return await reply_unless_gone(request, MessagesApi(backend.conversation).count_tokens(body))


OTHER_WORK = (
    "/v1/embeddings", "/v1/moderations", "/v1/audio/speech", "/v1/audio/transcriptions", "/v1/audio/translations",
    "/v1/images/generations", "/v1/images/edits", "/v1/images/variations",
)  # fmt: skip


def add_refusals(app: FastAPI, backend: Backend) -> None:
    """What clients ask of other models has an answer that says so."""

    async def refuse(request: Request) -> Response:
        name = backend.manager.info.served_model_name
        raise RequestError(
            f"{request.url.path} is not served: {name} generates text; use /v1/chat/completions, /v1/completions or "
            "/generate",
            param="model",
        )

    for path in OTHER_WORK:
        app.add_api_route(path, refuse, methods=["POST"])


def add_information_routes(app: FastAPI, backend: Backend) -> None:
    @app.get("/health")
    async def health() -> Response:
        if trouble := backend.ill():
            raise RequestError(trouble, status=503)
        return Response()  # the Gate answers 503 while the server starts or stops

    @app.get("/health_generate")
    async def health_generate() -> Response:
        if trouble := await backend.generates():
            raise RequestError(trouble, status=503)
        return Response()

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

    @app.get("/get_load")
    async def get_load() -> Response:
        return json_reply(await backend.load())

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
            raise RequestError(
                f"the model {shown(name)} is not served here, only {card['id']!r}", status=404, param="model"
            )
        return json_reply(card)


class AbortRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    rid: str | None = None
    abort_all: bool = False


def add_control_routes(app: FastAPI, backend: Backend) -> None:
    @app.api_route("/flush_cache", methods=["GET", "POST"])
    async def flush_cache(request: Request, timeout: float = 0.0) -> Response:
        if not 0 <= timeout <= 3600:
            raise RequestError(f"timeout is {timeout}; 0 to 3600 seconds are possible", param="timeout")

        async def answer() -> Response:
            reply = await backend.manager.flush_cache(timeout)
            if reply.success:
                return PlainTextResponse("Cache flushed.\n")
            return PlainTextResponse(f"Cache not flushed: {reply.message}.\n", status_code=400)

        return await reply_unless_gone(request, answer())

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
        chats = ChatApi(backend.conversation)
        return await reply_unless_gone(request, tokenize_answer(body, backend.manager, chats))

    @app.post("/detokenize")
    @app.post("/v1/detokenize")
    async def detokenize(request: Request) -> Response:
        body = await read_body(request, DetokenizeRequest)
        return await reply_unless_gone(request, detokenize_answer(body, backend.manager))
