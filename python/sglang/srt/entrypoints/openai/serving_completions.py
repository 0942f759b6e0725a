"""/v1/completions: prompts in, text out, with echo, log-probabilities and streaming."""

import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from sglang.srt.entrypoints.generate_api import batch_rids, check_counts, item_type
from sglang.srt.entrypoints.openai.protocol import (
    MAX_TOP_LOGPROBS,
    CompletionRequest,
    check_common,
    finish_fields,
    make_sampling_params,
    model_name,
    shared_key,
    usage,
)
from sglang.srt.entrypoints.replies import ANSWER_WORK, Turns, event
from sglang.srt.managers.generation import Generation, Prompt, RequestError
from sglang.srt.managers.io_struct import Logprobs
from sglang.srt.managers.tokenizer_manager import TokenizerManager

DEFAULT_MAX_TOKENS = 16  # OpenAI's


@dataclass
class Sent:
    """How much of a generation its client has."""

    begun: bool = False  # with the echo, if one was asked for
    chars: int = 0
    tokens: int = 0
    token_chars: int = 0  # of the texts in logprobs.tokens


class CompletionsApi:
    def __init__(self, manager: TokenizerManager):
        self._manager = manager

    async def answer(self, body: CompletionRequest) -> dict:
        prompts = self._prompts(body)
        head = self._head(body, prompts)
        async with self._manager.generate(prompts) as group:
            generations = await group.all()
        choices, turns = [], Turns()
        for generation in generations:
            choices.append(await self._choice(body, generation, Sent()))
            await turns.did(ANSWER_WORK)
        return {**head, "choices": choices, "usage": usage(generations, self._manager.args.enable_cache_report)}

    async def events(self, body: CompletionRequest) -> AsyncGenerator[bytes, None]:
        prompts = self._prompts(body)
        head = self._head(body, prompts)
        options = body.stream_options
        report = self._manager.args.enable_cache_report
        async with self._manager.generate(prompts) as group:
            sent = [Sent() for _ in group.generations]
            async for generations in group.news():
                for g in generations:
                    so_far = sent[g.index]
                    nothing_new = len(g.text) == so_far.chars and g.finish is None
                    if nothing_new and (body.logprobs is None or len(g.output_ids) == so_far.tokens):
                        continue
                    chunk = {**head, "choices": [await self._choice(body, g, so_far)]}
                    if options and options.continuous_usage_stats:
                        chunk["usage"] = usage([g], report)
                    yield event(chunk)
            if options and options.include_usage:
                yield event({**head, "choices": [], "usage": usage(group.generations, report)})

    def _prompts(self, body: CompletionRequest) -> list[Prompt]:
        check_common(body)
        if body.suffix:
            raise RequestError("suffix (filling in the middle) is not supported", param="suffix")
        n = 1 if body.n is None else body.n
        if body.best_of is not None and body.best_of != n:
            raise RequestError(
                f"best_of {body.best_of} is not supported; only best_of equal to n ({n})", param="best_of"
            )
        if body.logprobs is not None and not 0 <= body.logprobs <= MAX_TOP_LOGPROBS:
            raise RequestError(f"logprobs is {body.logprobs}; 0 to {MAX_TOP_LOGPROBS} are possible", param="logprobs")
        if body.logprobs is not None:
            self._manager.require_tokenizer()
        params = make_sampling_params(
            body, self._manager, DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        )
        given = body.prompt
        if isinstance(given, list):
            check_counts(given, "prompt")
        items = given if isinstance(given, list) and item_type(given, "prompt") is not int else [given]
        rids = (
            body.rid if isinstance(body.rid, list) else batch_rids(body.rid or f"cmpl-{uuid.uuid4().hex}", len(items))
        )
        if len(rids) != len(items):
            raise RequestError(f"rid has {len(rids)} entries for {len(items)} prompts", param="rid")
        return [
            Prompt(
                params,
                text=item if isinstance(item, str) else None,
                input_ids=None if isinstance(item, str) else item,
                rid=rid,
                stream=bool(body.stream),
                return_logprob=body.logprobs is not None,
                logprob_start_len=0 if body.echo and body.logprobs is not None else -1,
                top_logprobs_num=body.logprobs or 0,
                extra_key=shared_key(body),
            )
            for item, rid in zip(items, rids, strict=True)
        ]

    def _head(self, body: CompletionRequest, prompts: list[Prompt]) -> dict:
        return {
            "id": prompts[0].rid,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model_name(body, self._manager),
        }

    async def _choice(self, body: CompletionRequest, g: Generation, sent: Sent) -> dict:
        """What is new in the answer since `sent`, which is brought up to date."""
        chars, tokens, finish = len(g.text), len(g.output_ids), finish_fields(g)  # of this moment
        text = g.text[sent.chars :]
        if body.echo and not sent.begun:
            text = await self._echo(g) + text
        logprobs = None if body.logprobs is None else await self._logprobs(body, g, sent, tokens)
        sent.begun, sent.chars, sent.tokens = True, chars, tokens
        return {"index": g.index, "text": text, "logprobs": logprobs} | finish

    async def _echo(self, g: Generation) -> str:
        if g.prompt.text is not None:
            return g.prompt.text
        (text,) = await self._manager.reader.decode([g.prompt_ids])
        return text

    async def _logprobs(self, body: CompletionRequest, g: Generation, sent: Sent, end: int) -> dict:
        """OpenAI's columns. `text_offset` counts characters of the tokens' own texts."""
        columns: dict[str, list] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        token_text = self._manager.require_tokenizer().token_text

        turns = Turns()

        async def add(logprobs: Logprobs, start: int, end: int) -> None:
            for i in range(start, end):
                text = token_text(logprobs.ids[i])
                columns["tokens"].append(text)
                columns["token_logprobs"].append(logprobs.values[i])
                top = logprobs.top[i] if logprobs.top else None
                columns["top_logprobs"].append(top and best_by_text(top, token_text))
                columns["text_offset"].append(sent.token_chars)
                sent.token_chars += len(text)
                await turns.did(2 * len(top or ()))

        if body.echo and not sent.begun and g.input_logprobs is not None:
            await add(g.input_logprobs, 0, len(g.input_logprobs.ids))
        await add(g.output_logprobs, sent.tokens, end)
        return columns


def best_by_text(top: list[tuple[float, int]], token_text: Callable[[int], str]) -> dict[str, float]:
    """Text -> log-probability of (log-probability, id) pairs in falling order. Of tokens with one text, which parts of
    characters have, the best stays."""
    best: dict[str, float] = {}
    for value, token_id in top:
        best.setdefault(token_text(token_id), value)
    return best
