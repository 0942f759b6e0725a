"""/v1/chat/completions: messages through the checkpoint's template, one assistant message per choice out."""

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from sglang.srt.entrypoints.openai.chat_worker import ChatWriter
from sglang.srt.entrypoints.openai.protocol import (
    MAX_TOP_LOGPROBS,
    ChatCompletionRequest,
    check_common,
    finish_fields,
    make_sampling_params,
    model_name,
    shared_key,
    usage,
)
from sglang.srt.entrypoints.replies import Turns, event
from sglang.srt.managers.generation import Generation, Prompt, RequestError
from sglang.srt.managers.tokenizer_manager import TokenizerManager


class ChatApi:
    """`writer` None: the tokenizer has no chat template."""

    def __init__(self, manager: TokenizerManager, writer: ChatWriter | None):
        self._manager = manager
        self._writer = writer

    async def answer(self, body: ChatCompletionRequest) -> dict:
        prompt = await self.prompt(body)
        head = self._head(body, prompt, "chat.completion")
        async with self._manager.generate([prompt]) as group:
            generations = await group.all()
        choices = [
            {
                "index": g.index,
                "message": {"role": "assistant", "content": g.text, "reasoning_content": None, "tool_calls": None},
                "logprobs": await self._logprobs(g, 0, len(g.output_ids)),
                **finish_fields(g),
            }
            for g in generations
        ]
        return {**head, "choices": choices, "usage": usage(generations, self._manager.args.enable_cache_report)}

    async def events(self, body: ChatCompletionRequest) -> AsyncGenerator[bytes, None]:
        prompt = await self.prompt(body)
        head = self._head(body, prompt, "chat.completion.chunk")
        options = body.stream_options
        report = self._manager.args.enable_cache_report
        sent: dict[int, tuple[int, int]] = {}  # index -> characters, tokens

        def chunk(g: Generation, delta: dict, logprobs: dict | None = None, finish: dict | None = None) -> bytes:
            # Clients of reasoning models read the thought in every delta, null or not.
            choice = {"index": g.index, "delta": {**delta, "reasoning_content": None}, "logprobs": logprobs}
            value = {**head, "choices": [choice | (finish or {"finish_reason": None, "matched_stop": None})]}
            if options and options.continuous_usage_stats and "role" not in delta:
                value["usage"] = usage([g], report)
            return event(value)

        async with self._manager.generate([prompt]) as group:
            async for generations in group.news():
                for g in generations:
                    if g.index not in sent:
                        sent[g.index] = (0, 0)
                        yield chunk(g, {"role": "assistant", "content": ""})
                    chars, tokens = sent[g.index]
                    text, end, finish = g.text[chars:], len(g.output_ids), finish_fields(g)  # of this moment
                    sent[g.index] = (chars + len(text), end)
                    logprobs = await self._logprobs(g, tokens, end) if end > tokens else None
                    if text or logprobs is not None:
                        yield chunk(g, {"content": text}, logprobs)
                    if finish["finish_reason"] is not None:
                        yield chunk(g, {}, finish=finish)
            if options and options.include_usage:
                yield event({**head, "choices": [], "usage": usage(group.generations, report)})

    def _head(self, body: ChatCompletionRequest, prompt: Prompt, kind: str) -> dict:
        return {
            "id": prompt.rid,
            "object": kind,
            "created": int(time.time()),
            "model": model_name(body, self._manager),
        }

    async def prompt(self, body: ChatCompletionRequest) -> Prompt:
        """What the model gets. Raises RequestError."""
        check_common(body)
        if body.modalities not in (None, ["text"]):
            raise RequestError('modalities: only ["text"] is supported', param="modalities")
        if body.tool_choice not in (None, "auto", "none"):
            raise RequestError('tool_choice: only "auto" and "none" are supported so far', param="tool_choice")
        if body.top_logprobs is not None and not body.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        if body.top_logprobs is not None and not 0 <= body.top_logprobs <= MAX_TOP_LOGPROBS:
            raise RequestError(
                f"top_logprobs is {body.top_logprobs}; 0 to {MAX_TOP_LOGPROBS} are possible", param="top_logprobs"
            )
        if isinstance(body.rid, list):
            raise RequestError("rid is a list, but there is one prompt", param="rid")
        limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        # Without a limit an answer may fill the context; the scheduler ends it there.
        params = make_sampling_params(
            body, self._manager, self._manager.info.context_length if limit is None else limit
        )
        return Prompt(
            params,
            text=await self._render(body),
            rid=body.rid or f"chatcmpl-{uuid.uuid4().hex}",
            stream=bool(body.stream),
            return_logprob=bool(body.logprobs),
            top_logprobs_num=body.top_logprobs or 0,
            extra_key=shared_key(body),
            add_special_tokens=False,
        )

    async def _render(self, body: ChatCompletionRequest) -> str:
        try:
            self._manager.require_tokenizer().require_chat_template()
        except ValueError as e:
            raise RequestError(str(e), param="messages") from e
        return await self._writer.prompt(body)

    async def _logprobs(self, g: Generation, start: int, end: int) -> dict | None:
        if not g.prompt.return_logprob:
            return None
        tokenizer = self._manager.require_tokenizer()
        logprobs = g.output_logprobs

        def entry(value: float, token_id: int) -> dict[str, Any]:
            return {"token": tokenizer.token_text(token_id), "bytes": tokenizer.token_bytes(token_id), "logprob": value}

        content, turns = [], Turns()
        for i in range(start, end):
            tops = [entry(value, token_id) for value, token_id in logprobs.top[i]] if logprobs.top else []
            content.append(entry(logprobs.values[i], logprobs.ids[i]) | {"top_logprobs": tops})
            await turns.did(4 * len(tops))
        return {"content": content}
