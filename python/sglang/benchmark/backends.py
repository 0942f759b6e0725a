"""How each kind of server is asked for one answer and how its stream is read.

A backend is a path, a body and a reader of chunks; `send` does one request and notes when its tokens came.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from sglang.benchmark.datasets import DatasetRow
from sglang.benchmark.metrics import RequestResult

ERROR_CHARS = 300  # of a server's message that are kept
NO_MORE = b"[DONE]"

encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class RequestOptions:
    """What all requests of a run have in common."""

    model: str | None
    temperature: float = 0.0
    top_p: float = 1.0
    ignore_eos: bool = True
    stream: bool = True
    return_logprob: bool = False
    logprobs: dict[str, Any] = field(default_factory=dict)  # how: fields of /generate
    extra_body: dict[str, Any] = field(default_factory=dict)
    incremental: bool = False  # /generate streams only what is new (--incremental-streaming-output)


# ---- bodies -------------------------------------------------------------------------------------------------------


def generate_body(row: DatasetRow, options: RequestOptions) -> dict[str, Any]:
    body = {
        "text" if isinstance(row.prompt, str) else "input_ids": row.prompt,
        "sampling_params": {
            "max_new_tokens": row.output_len,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "ignore_eos": options.ignore_eos,
        },
        "stream": options.stream,
    }
    return body | ({"return_logprob": True, **options.logprobs} if options.return_logprob else {})


def openai_body(row: DatasetRow, options: RequestOptions) -> dict[str, Any]:
    body = {
        "model": options.model,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "ignore_eos": options.ignore_eos,
        "stream": options.stream,
    }
    if options.stream:  # counts in every chunk: one may carry several tokens
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return body


def completions_body(row: DatasetRow, options: RequestOptions) -> dict[str, Any]:
    body = openai_body(row, options) | {"prompt": row.prompt, "max_tokens": row.output_len}
    return body | ({"logprobs": options.logprobs.get("top_logprobs_num", 1)} if options.return_logprob else {})


def chat_body(row: DatasetRow, options: RequestOptions) -> dict[str, Any]:
    messages = row.messages or [{"role": "user", "content": row.prompt}]
    body = openai_body(row, options) | {"messages": messages, "max_completion_tokens": row.output_len} | row.fields
    if options.return_logprob:
        body["logprobs"] = True
        if top := options.logprobs.get("top_logprobs_num"):
            body["top_logprobs"] = top
    return body


def merged(body: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`extra` over `body`; objects on both sides are merged, so that one sampling parameter can be added."""
    both = {k: body[k] | v for k, v in extra.items() if isinstance(v, dict) and isinstance(body.get(k), dict)}
    return body | extra | both


# ---- chunks: only the fields that are looked at are decoded ---------------------------------------------------------


class FinishReason(msgspec.Struct):
    type: str
    message: str | None = None


class MetaInfo(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    finish_reason: FinishReason | None = None


class GenerateChunk(msgspec.Struct):
    meta_info: MetaInfo | None = None
    error: Any = None


class GenerateText(msgspec.Struct):
    text: str = ""


class PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None


class Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class Choice(msgspec.Struct):
    text: str | None = None
    delta: Message | None = None
    message: Message | None = None
    finish_reason: str | None = None

    @property
    def new_text(self) -> str:
        said = self.delta or self.message
        return self.text or "" if said is None else (said.reasoning_content or "") + (said.content or "")


class OpenAIChunk(msgspec.Struct):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


class AnswerError(Exception):
    """The server answered, but not with what was asked for."""


class BrokenOff(AnswerError):
    """The stream ended before its end mark."""


class AnswerReader(ABC):
    """Common part of the readers of one answer: notes in `result` when tokens come."""

    def __init__(self, result: RequestResult, options: RequestOptions):
        self.result = result
        self.options = options
        self._last = 0.0  # when the previous tokens came
        self._tokens = 0

    @abstractmethod
    def chunk(self, data: bytes, now: float) -> None:
        """One JSON body of the stream, or the whole answer. Raises AnswerError, msgspec.DecodeError."""

    def end(self) -> None:
        """No chunk will follow: complete the result, or raise AnswerError when it can't be."""
        if not self._tokens:
            raise AnswerError("the answer holds no token")
        self.result.output_len = self._tokens

    def _came(self, new: int, now: float) -> None:
        """`new` tokens came in one chunk; its gap counts as theirs in equal parts."""
        result = self.result
        if self._tokens == 0:
            result.first_tokens = new
            if self.options.stream:
                result.ttft = now - result.sent_at
        else:
            result.itls += [(now - self._last) / new] * new
        self._tokens += new
        self._last = now


class GenerateReader(AnswerReader):
    """/generate. The text is decoded at the end only: each chunk holds all of it, unless the server is incremental."""

    _decode = msgspec.json.Decoder(GenerateChunk).decode
    _decode_text = msgspec.json.Decoder(GenerateText).decode

    def __init__(self, result: RequestResult, options: RequestOptions):
        super().__init__(result, options)
        self._kept: list[bytes] = []

    def chunk(self, data: bytes, now: float) -> None:
        chunk = self._decode(data)
        raise_if_error(chunk.error)
        meta = chunk.meta_info
        if meta is None:
            raise AnswerError(f"a chunk without meta_info: {shown(data)}")
        if meta.finish_reason is not None and meta.finish_reason.type == "abort":
            raise AnswerError(f"aborted: {meta.finish_reason.message or 'no reason given'}")
        if meta.completion_tokens > self._tokens:
            self._came(meta.completion_tokens - self._tokens, now)
        self.result.prompt_len = meta.prompt_tokens or self.result.prompt_len
        self.result.cached_tokens = meta.cached_tokens
        if not self.options.incremental:
            self._kept.clear()
        self._kept.append(data)

    def end(self) -> None:
        super().end()
        self.result.text = "".join(self._decode_text(data).text for data in self._kept)


class OpenAIReader(AnswerReader):
    """/v1/completions and /v1/chat/completions. Without usage in its chunks, each chunk with text counts as a token;
    usage at the end corrects the number."""

    _decode = msgspec.json.Decoder(OpenAIChunk).decode

    def __init__(self, result: RequestResult, options: RequestOptions):
        super().__init__(result, options)
        self._texts: list[str] = []
        self._usage: Usage | None = None

    def chunk(self, data: bytes, now: float) -> None:
        chunk = self._decode(data)
        raise_if_error(chunk.error)
        text = "".join(choice.new_text for choice in chunk.choices)
        if any(choice.finish_reason == "abort" for choice in chunk.choices):
            raise AnswerError("aborted by the server")
        if chunk.usage is None:
            new = 1 if text else 0
        else:
            self._usage = chunk.usage
            # At the end of a stream without running counts only the sum is news, not a token.
            new = chunk.usage.completion_tokens - self._tokens if chunk.choices else 0
        if new > 0:
            self._came(new, now)
        if text:
            self._texts.append(text)

    def end(self) -> None:
        super().end()
        self.result.text = "".join(self._texts)
        if self._usage is None:
            self.result.counted_chunks = True
        else:
            self.result.output_len = self._usage.completion_tokens
            self.result.prompt_len = self._usage.prompt_tokens or self.result.prompt_len
            if self._usage.prompt_tokens_details is not None:
                self.result.cached_tokens = self._usage.prompt_tokens_details.cached_tokens


def raise_if_error(error: Any) -> None:
    if error is not None:
        message = error.get("message") if isinstance(error, dict) else error
        raise AnswerError(f"the server answered with an error: {message}")


def shown(data: bytes) -> str:
    return data[:ERROR_CHARS].decode(errors="replace").strip()


# ---- the backends ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Backend:
    path: str
    make_body: Callable[[DatasetRow, RequestOptions], dict[str, Any]]
    reader: type[AnswerReader]
    is_sglang: bool = True  # has /server_info and /flush_cache
    default_port: int = 30000

    @property
    def is_chat(self) -> bool:
        return self.make_body is chat_body


NATIVE = Backend("/generate", generate_body, GenerateReader)
BACKENDS = {
    "sglang": NATIVE,
    "sglang-native": NATIVE,
    "sglang-oai": Backend("/v1/completions", completions_body, OpenAIReader),
    "sglang-oai-chat": Backend("/v1/chat/completions", chat_body, OpenAIReader),
    "vllm": Backend("/v1/completions", completions_body, OpenAIReader, is_sglang=False, default_port=8000),
    "vllm-chat": Backend("/v1/chat/completions", chat_body, OpenAIReader, is_sglang=False, default_port=8000),
}


async def send(
    session: aiohttp.ClientSession,
    url: str,
    backend: Backend,
    row: DatasetRow,
    options: RequestOptions,
    result: RequestResult,
) -> None:
    """Do one request and fill `result` in; what goes wrong is its `error`. Raises only CancelledError."""
    data = encode(merged(backend.make_body(row, options), options.extra_body))
    reader = backend.reader(result, options)
    result.sent_at = time.perf_counter()
    try:
        headers = row.headers or None
        async with session.post(url + backend.path, data=data, headers=headers, allow_redirects=False) as reply:
            if reply.status != 200:
                raise AnswerError(f"HTTP {reply.status}: {error_message(await reply.read())}")
            if options.stream:
                await read_stream(reply.content, reader)
            else:
                reader.chunk(await reply.read(), time.perf_counter())
        reader.end()
        result.error = ""
    except AnswerError as e:
        result.error = str(e)
        result.lost_connection = isinstance(e, BrokenOff)
    except msgspec.DecodeError as e:
        result.error = f"an answer that can't be read: {e}"
    except (TimeoutError, aiohttp.ClientError, OSError) as e:
        result.error = connection_error(e)
        result.lost_connection = True
    finally:
        result.latency = time.perf_counter() - result.sent_at


async def read_stream(content: aiohttp.StreamReader, reader: AnswerReader) -> None:
    """Server-sent events to the reader, each with the time at which it came. Raises BrokenOff when the last is
    missing."""
    rest, ended = b"", False
    async for data in content.iter_any():
        now = time.perf_counter()
        *lines, rest = (rest + data).split(b"\n")
        for event in events(lines):
            if event == NO_MORE:
                ended = True
            else:
                reader.chunk(event, now)
    if not ended:
        raise BrokenOff("the stream broke off before its end")


def events(lines: list[bytes]) -> Iterator[bytes]:
    """The data of each event; all servers here write theirs in one line. Comments and blank lines are left out."""
    for line in lines:
        if line.startswith(b"data:"):
            yield line[5:].strip()


def connection_error(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect to {error.host}:{error.port}"
    return f"{type(error).__name__}: {error}"


def error_message(body: bytes) -> str:
    """What a refusal says, in OpenAI's form or in any other."""
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return shown(body)
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(key):
            value = value[key]
    return str(value)[:ERROR_CHARS]
