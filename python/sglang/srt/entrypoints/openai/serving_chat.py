"""/v1/chat/completions: messages through the checkpoint's template, one assistant message per choice out."""

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from sglang.srt.entrypoints.chat_prompt import Turn
from sglang.srt.entrypoints.conversation import Answer, Conversation, Message
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
from sglang.srt.parser.events import CallArguments, CallStart, Event, Text, Thought


class ChatApi:
    def __init__(self, conversation: Conversation):
        self._conversation = conversation
        self._manager = conversation.manager

    async def answer(self, body: ChatCompletionRequest) -> dict:
        turn, prompt = self.turn(body), self._prompt(body)
        head = self._head(body, prompt, "chat.completion")
        async with self._start(body, turn, prompt) as group:
            answers = await group.all()
        choices = [
            {
                "index": a.generation.index,
                "message": _message(a.message()),
                "logprobs": await self._logprobs(a.generation, 0, len(a.generation.output_ids)),
                **finish_fields(a.generation, a.finish_reason),
            }
            for a in answers
        ]
        return {**head, "choices": choices, "usage": self._usage(answers)}

    async def events(self, body: ChatCompletionRequest) -> AsyncGenerator[bytes, None]:
        turn, prompt = self.turn(body), self._prompt(body)
        head = self._head(body, prompt, "chat.completion.chunk")
        options = body.stream_options
        whole_thoughts = body.stream_reasoning is False
        sent: dict[int, int] = {}  # index -> tokens
        thoughts: dict[int, str] = {}  # that wait for their end

        def chunk(a: Answer, delta: dict, logprobs: dict | None = None, finish: dict | None = None) -> bytes:
            # Clients of reasoning models read the thought in every delta, null or not.
            choice = {"index": a.generation.index, "delta": {"reasoning_content": None} | delta, "logprobs": logprobs}
            value = {**head, "choices": [choice | (finish or {"finish_reason": None, "matched_stop": None})]}
            if options and options.continuous_usage_stats and "role" not in delta:
                value["usage"] = self._usage([a])
            return event(value)

        async with self._start(body, turn, prompt) as group:
            async for answers in group.news():
                for a in answers:
                    g = a.generation
                    if g.index not in sent:
                        sent[g.index] = 0
                        yield chunk(a, {"role": "assistant", "content": ""})
                    news, end = a.news(), len(g.output_ids)  # of this moment, as is the next line
                    finish = finish_fields(g, a.finish_reason)
                    if whole_thoughts:
                        news = _hold_thoughts(news, g.index, thoughts, ended=finish["finish_reason"] is not None)
                    deltas = [delta for e in news if (delta := _delta(e)) is not None]
                    tokens, sent[g.index] = sent[g.index], end
                    logprobs = await self._logprobs(g, tokens, end) if end > tokens else None
                    if logprobs is not None and not deltas:
                        deltas = [{"content": ""}]
                    for delta in deltas:
                        yield chunk(a, delta, logprobs)
                        logprobs = None
                    if finish["finish_reason"] is not None:
                        yield chunk(a, {}, finish=finish)
            if options and options.include_usage:
                yield event({**head, "choices": [], "usage": self._usage(group.answers)})

    def _start(self, body: ChatCompletionRequest, turn: Turn, prompt: Prompt):
        return self._conversation.start(
            turn,
            prompt,
            thoughts=body.separate_reasoning is not False,
            parallel_calls=body.parallel_tool_calls is not False,
        )

    def _usage(self, answers: list[Answer]) -> dict:
        report = usage([a.generation for a in answers], self._manager.args.enable_cache_report)
        return report | {"reasoning_tokens": sum(a.thought_tokens for a in answers)}

    def _head(self, body: ChatCompletionRequest, prompt: Prompt, kind: str) -> dict:
        return {
            "id": prompt.rid,
            "object": kind,
            "created": int(time.time()),
            "model": model_name(body, self._manager),
        }

    def turn(self, body: ChatCompletionRequest) -> Turn:
        """What is asked; raises RequestError for what is not served."""
        check_common(body)
        if body.modalities not in (None, ["text"]):
            raise RequestError('modalities: only ["text"] is supported', param="modalities")
        turn = Turn(**{name: getattr(body, name) for name in Turn.__struct_fields__})
        if body.reasoning is not None:
            turn.reasoning_effort = body.reasoning.effort or turn.reasoning_effort
            if body.reasoning.thinks is not None and turn.reasoning_effort is None:
                thinks = {"enable_thinking": body.reasoning.thinks}
                turn.chat_template_kwargs = thinks | (turn.chat_template_kwargs or {})
        return turn

    async def render(self, body: ChatCompletionRequest) -> str:
        """The prompt's text. Raises RequestError."""
        return await self._conversation.render(self.turn(body))

    def _prompt(self, body: ChatCompletionRequest) -> Prompt:
        """All but its text."""
        if body.top_logprobs and not body.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        if body.top_logprobs is not None and not 0 <= body.top_logprobs <= MAX_TOP_LOGPROBS:
            raise RequestError(
                f"top_logprobs is {body.top_logprobs}; 0 to {MAX_TOP_LOGPROBS} are possible", param="top_logprobs"
            )
        if isinstance(body.rid, list):
            raise RequestError("rid is a list, but there is one prompt", param="rid")
        if body.reasoning is not None and body.thinking_budget is None:
            body.thinking_budget = body.reasoning.max_tokens
        limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        # Without a limit an answer may fill the context; the scheduler ends it there.
        params = make_sampling_params(
            body, self._manager, self._manager.info.context_length if limit is None else limit
        )
        return Prompt(
            params,
            rid=body.rid or f"chatcmpl-{uuid.uuid4().hex}",
            stream=bool(body.stream),
            return_logprob=bool(body.logprobs),
            top_logprobs_num=body.top_logprobs or 0,
            extra_key=shared_key(body),
        )

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


def _message(message: Message) -> dict:
    calls = [
        {"id": c.id, "type": "function", "index": i, "function": {"name": c.name, "arguments": c.arguments}}
        for i, c in enumerate(message.calls)
    ]
    return {
        "role": "assistant",
        "content": message.text if message.text or not (calls or message.thought) else None,
        "reasoning_content": message.thought or None,
        "tool_calls": calls or None,
    }


def _delta(e: Event) -> dict | None:
    """An event as the change of a streamed message; None for one that changes nothing."""
    match e:
        case Text(text):
            return {"content": text}
        case Thought(text):
            return {"reasoning_content": text}
        case CallStart(index, id, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
    return None


def _hold_thoughts(news: list[Event], index: int, held: dict[int, str], ended: bool) -> list[Event]:
    """The events with each thought whole, when it has ended."""
    result: list[Event] = []
    for e in news:
        if isinstance(e, Thought):
            held[index] = held.get(index, "") + e.text
            continue
        if thought := held.pop(index, ""):
            result.append(Thought(thought))
        result.append(e)
    if ended and (thought := held.pop(index, "")):
        result.append(Thought(thought))
    return result
