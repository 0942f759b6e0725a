"""/tokenize and /detokenize: texts to ids and back, without the model."""

import msgspec

from sglang.srt.entrypoints.generate_api import item_type
from sglang.srt.managers.generation import RequestError
from sglang.srt.managers.tokenizer_manager import TokenizerManager

MAX_LISTS = 4096  # texts, or lists of ids, in one call
MAX_CHARS = 4_000_000
MAX_IDS = 1_000_000


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str | None = None
    prompt: str | list[str]
    add_special_tokens: bool = True


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str | None = None
    tokens: list[int | list[int]]
    skip_special_tokens: bool = True


async def tokenize_answer(body: TokenizeRequest, manager: TokenizerManager) -> dict:
    """A single text is answered by one list and one number, a list of texts by lists of them."""
    single = isinstance(body.prompt, str)
    texts = [body.prompt] if single else body.prompt
    _check_count("prompt", len(texts), MAX_LISTS, "texts")
    _check_count("prompt", sum(map(len, texts)), MAX_CHARS, "characters")
    ids = await manager.reader.encode(texts, body.add_special_tokens)
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
