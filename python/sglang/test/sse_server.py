"""SseServer: a server without a model for tests of benchmark clients, with every endpoint they ask, several tokens a
chunk on demand, and all the ways in which an answer can go wrong. It runs in a thread and answers at once."""

import asyncio
import threading
from typing import Any, Self

import aiohttp.web
import msgspec

from sglang.test.tiny_tokenizer import make_tokenizer

TOKEN = "x"  # each output token; in the tiny tokenizer one token too, however many stand together
VOCAB_SIZE = 300

encode = msgspec.json.encode


class SseServer:
    """Answers of `max_tokens` tokens. Attributes may be changed at any time:

    `chunk_tokens`: tokens in each chunk. `usage`: running (in every chunk), final or none. `cached_tokens`: told of
    each prompt unless None. `incremental`: /generate streams only what is new. `faults`: what to do to the n-th answer
    (the first is 0): refuse (HTTP 500), error (event in the stream), abort (finish reason), cut (connection closed
    within the stream), silent (stream ends unmarked), garbage (a chunk that is not JSON), empty (no token), die (the
    whole server, within the stream), hang (until it stops). `requests` holds (path, body, headers) of the answers
    asked for, `orders` those of other POSTs.
    """

    def __init__(self, tokenizer_path: str | None = None, **server_info: Any):
        self.chunk_tokens = 1
        self.usage = "running"
        self.cached_tokens: int | None = None
        self.incremental = False
        self.faults: dict[int, str] = {}
        self.requests: list[tuple[str, dict, dict]] = []
        self.orders: list[tuple[str, dict]] = []
        self.missing: set[str] = set()  # paths that answer 404
        self.hanging: set[str] = set()  # orders that are never answered
        self.server_info = {"vocab_size": VOCAB_SIZE, "api_key": "hush", **server_info}
        self.tokenizer_path = tokenizer_path
        self.url = ""
        self._tokenizer = make_tokenizer()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():  # else it died on demand
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        self._loop.close()

    def _serve(self) -> None:
        self._loop.run_until_complete(self._life())

    async def _life(self) -> None:
        app = aiohttp.web.Application(middlewares=[self._gate])
        for path in ("/health", "/v1/models", "/model_info", "/server_info"):
            app.router.add_get(path, self._tell)
        for path in ("/flush_cache", "/start_profile", "/stop_profile"):
            app.router.add_post(path, self._order)
        for path in ("/generate", "/v1/completions", "/v1/chat/completions"):
            app.router.add_post(path, self._answer)
        self._end = asyncio.Event()
        runner = aiohttp.web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        self._site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
        await self._site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._end.wait()
        await runner.cleanup()

    async def _tell(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        pages = {
            "/health": {},
            "/v1/models": {"data": [{"id": "fake", "max_model_len": 4096}]},
            "/model_info": {"tokenizer_path": self.tokenizer_path},
            "/server_info": self.server_info,
        }
        return self._reply(pages[request.path])

    def _reply(self, value: Any, status: int = 200) -> aiohttp.web.Response:
        return aiohttp.web.Response(body=encode(value), status=status, content_type="application/json")

    @aiohttp.web.middleware
    async def _gate(self, request: aiohttp.web.Request, handler) -> aiohttp.web.StreamResponse:
        if request.path in self.missing:
            return self._reply({"error": {"message": f"no {request.path} here"}}, 404)
        return await handler(request)

    async def _order(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        body = await request.read()
        self.orders.append((request.path, msgspec.json.decode(body) if body else {}))
        if request.path in self.hanging:
            await self._end.wait()
        return self._reply({})

    async def _answer(self, request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        body = msgspec.json.decode(await request.read())
        fault = self.faults.get(len(self.requests))
        self.requests.append((request.path, body, dict(request.headers)))
        if fault == "refuse":
            return self._reply({"error": {"message": "no room", "code": 500}}, 500)
        if fault == "hang":
            await self._end.wait()
        form = Form(self, request.path, body, fault)
        if not body["stream"]:
            return self._reply(form.whole())
        reply = aiohttp.web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        reply.enable_chunked_encoding()
        await reply.prepare(request)
        chunks = list(form.chunks())
        for i, chunk in enumerate(chunks):
            if i == len(chunks) // 2 and fault in ("cut", "die"):
                if fault == "die":
                    await self._site.stop()
                    self._end.set()
                request.transport.abort()
                return reply
            await reply.write(b"data: " + (b"{oops" if fault == "garbage" else encode(chunk)) + b"\n\n")
        if fault != "silent":
            await reply.write(b": a comment\n\ndata: [DONE]\n\n")
        return reply

    def count(self, prompt: str | list[int]) -> int:
        return len(self._tokenizer.encode(prompt).ids) if isinstance(prompt, str) else len(prompt)


class Form:
    """The chunks of one answer as one endpoint writes them."""

    def __init__(self, server: SseServer, path: str, body: dict, fault: str | None):
        self.server, self.path, self.fault = server, path, fault
        if path == "/generate":
            prompt, wanted = body.get("text", body.get("input_ids")), body["sampling_params"]["max_new_tokens"]
        elif path == "/v1/completions":
            prompt, wanted = body["prompt"], body["max_tokens"]
        else:
            prompt, wanted = body["messages"][0]["content"], body["max_completion_tokens"]
        self.prompt_tokens = server.count(prompt)
        self.tokens = 0 if fault == "empty" else wanted

    def chunks(self):
        sent, step = 0, self.server.chunk_tokens
        if self.path == "/v1/chat/completions":
            yield self._openai({"delta": {"role": "assistant", "content": ""}}, 0)
        while sent < self.tokens:
            new = min(step, self.tokens - sent)
            sent += new
            yield self._chunk(new, sent)
        if self.fault == "error":
            yield {"error": {"message": "out of luck"}}
        if self.fault == "empty":
            yield self._chunk(0, 0)
        if self.path != "/generate" and self.server.usage != "none":
            yield {"choices": [], "usage": self._usage(self.tokens)}

    def whole(self) -> dict:
        chunk = self._chunk(self.tokens, self.tokens)
        for choice in chunk.get("choices", ()):
            if "delta" in choice:
                choice["message"] = choice.pop("delta")
        return chunk if self.path == "/generate" else chunk | {"usage": self._usage(self.tokens)}

    def _usage(self, sent: int) -> dict:
        usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": sent}
        if (cached := self.server.cached_tokens) is None:
            return usage
        told = {"cached_tokens": cached}
        return usage | (told if self.path == "/generate" else {"prompt_tokens_details": told})

    def _chunk(self, new: int, sent: int) -> dict:
        last = sent == self.tokens
        if self.path == "/generate":
            finish = {"type": "abort", "message": "out of memory"} if self.fault == "abort" else {"type": "length"}
            text = TOKEN * (new if self.server.incremental else sent)
            return {"text": text, "meta_info": self._usage(sent) | {"finish_reason": finish if last else None}}
        choice = {"text": TOKEN * new} if self.path == "/v1/completions" else {"delta": {"content": TOKEN * new}}
        finish = "abort" if self.fault == "abort" else "length"
        return self._openai(choice | {"finish_reason": finish if last else None}, sent)

    def _openai(self, choice: dict, sent: int) -> dict:
        value: dict = {"object": "chunk", "choices": [{"index": 0, **choice}]}
        return value | ({"usage": self._usage(sent)} if self.server.usage == "running" else {})
