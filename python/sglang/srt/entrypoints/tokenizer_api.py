"""/tokenize and /detokenize: texts and chats to ids, and ids to texts, without the model."""

from typing import Any

import msgspec

from sglang.srt.entrypoints.generate_api import item_type
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest
from sglang.srt.entrypoints.openai.serving_chat import ChatApi
from sglang.srt.managers.generation import RequestError
from sglang.srt.managers.tokenizer_manager import TokenizerManager

MAX_LISTS = 4096  # texts, or lists of ids, in one call
MAX_CHARS = 4_000_000
MAX_IDS = 1_000_000


class TokenizeRequest(ChatCompletionRequest, kw_only=True, forbid_unknown_fields=True):
    """Either `prompt`, or a chat as /v1/chat/completions takes it, with all of its fields."""

    prompt: str | list[str] | None = None
    add_special_tokens: bool = True  # of a prompt; a chat's template writes them
    messages: list[dict[str, Any]] | None = None

    def chat(self) -> ChatCompletionRequest:
        return ChatCompletionRequest(**{name: getattr(self, name) for name in ChatCompletionRequest.__struct_fields__})


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str | None = None
    tokens: list[int | list[int]]
    skip_special_tokens: bool = True


async def tokenize_answer(body: TokenizeRequest, manager: TokenizerManager, chats: ChatApi) -> dict:
    """A single text or a chat is answered by one list and one number, a list of texts by lists of them."""
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("exactly one of prompt and messages must be given", param="prompt")
    is_chat = body.messages is not None
    prompt = await chats.render(body.chat()) if is_chat else body.prompt
    single = isinstance(prompt, str)
    texts = [prompt] if single else prompt
    _check_count("prompt", len(texts), MAX_LISTS, "texts")
    _check_count("prompt", sum(map(len, texts)), MAX_CHARS, "characters")
    ids = await manager.reader.encode(texts, body.add_special_tokens and not is_chat)
    return {
        "tokens": ids[0] if single else ids,
        "count": len(ids[0]) if single else [len(i) for i in ids],
        "max_model_len": manager.info.context_length,
    }


async def detokenize_answer(body: DetokenizeRequest, manager: TokenizerManager) -> dict:
    _check_count("tokens", len(body.tokens), MAX_IDS, "ids")
    single = not body.tokens or item_type(body.tokens, "tokens") is int
    lists = [body.tokens] if single else body.tokens
    _check_count("tokens", len(lists), MAX_LISTS, "lists")
    _check_count("tokens", sum(map(len, lists)), MAX_IDS, "ids")
    for ids in lists:
        if ids:
            manager.reader.check_ids(ids, "tokens")
    texts = await manager.reader.decode(lists, body.skip_special_tokens)
    return {"text": texts[0] if single else texts}


def _check_count(field: str, count: int, most: int, what: str) -> None:
    if count > most:
        raise RequestError(f"{field} has {count} {what}, at most {most} are possible in one call", param=field)
