"""/v1/messages: Anthropic's form of a turn in, content blocks out, whole or as its stream of named events."""

import uuid
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from sglang.srt.entrypoints.anthropic.protocol import (
    CountTokensRequest,
    MessagesRequest,
    wire_messages,
    wire_tool_choice,
    wire_tools,
)
from sglang.srt.entrypoints.chat_prompt import Turn
from sglang.srt.entrypoints.checks import cache_key, check_model, form_schema, refuse_unserved, request_params
from sglang.srt.entrypoints.conversation import Answer, Call, Conversation
from sglang.srt.entrypoints.replies import named_event
from sglang.srt.managers.generation import Prompt, RequestError
from sglang.srt.parser.events import CallArguments, CallEnd, CallStart, Event, Text, Thought

RENAMED = {"max_new_tokens": "max_tokens", "stop": "stop_sequences", "sampling_seed": "seed"}
STOP_REASONS = {"tool_calls": "tool_use", "length": "max_tokens", "stop": "end_turn"}


class MessagesApi:
    def __init__(self, conversation: Conversation):
        self._conversation = conversation
        self._manager = conversation.manager

    async def answer(self, body: MessagesRequest) -> dict:
        prompt = self._prompt(body)
        async with self._start(body, prompt) as group:
            (answer,) = await group.all()
        content = content_blocks(answer.news(), answer.calls)
        return self._head(body, prompt) | {
            "content": content,
            **stop_fields(answer),
            "usage": self._usage(answer),
        }

    async def events(self, body: MessagesRequest) -> AsyncGenerator[bytes, None]:
        prompt, blocks, started = self._prompt(body), BlockEvents(), False
        async with self._start(body, prompt) as group:
            (answer,) = group.answers
            async for _ in group.news():
                if not started:
                    started = True
                    message = self._head(body, prompt) | {
                        "content": [],
                        "stop_reason": None,
                        "stop_sequence": None,
                        "usage": self._usage(answer),
                    }
                    yield named_event({"type": "message_start", "message": message})
                    yield named_event({"type": "ping"})
                for event in answer.news():
                    for value in blocks.of(event):
                        yield named_event(value)
        for value in blocks.close():
            yield named_event(value)
        yield named_event({"type": "message_delta", "delta": stop_fields(answer), "usage": self._usage(answer)})
        yield named_event({"type": "message_stop"})

    async def count_tokens(self, body: CountTokensRequest) -> dict:
        text = await self._conversation.render(self._turn(body))
        (ids,) = await self._manager.reader.encode([text], False)
        return {"input_tokens": len(ids)}

    def _start(self, body: MessagesRequest, prompt: Prompt):
        parallel = body.tool_choice is None or not body.tool_choice.disable_parallel_tool_use
        return self._conversation.start(self._turn(body), prompt, parallel_calls=parallel, schemas_at="input_schema")

    def _turn(self, body: CountTokensRequest) -> Turn:
        """What is asked; raises RequestError for what is not served."""
        check_model(body.model)
        refuse_unserved(body)
        variables: dict[str, Any] = {}
        if body.thinking is not None:
            if body.thinking.budget_tokens is not None and body.thinking.budget_tokens < 1:
                raise RequestError(
                    f"thinking.budget_tokens must be at least 1, got {body.thinking.budget_tokens}", param="thinking"
                )
            variables["enable_thinking"] = body.thinking.type != "disabled"
        messages = wire_messages(body)
        continued = bool(messages) and messages[-1]["role"] == "assistant"
        if continued and not messages[-1].keys() <= {"role", "content"}:
            raise RequestError(
                "the last message is the assistant's and holds more than text: a tool_use is followed by its "
                "tool_result, and of what an answer begins with only text can be continued",
                param="messages",
            )
        return Turn(
            messages=messages,
            tools=wire_tools(body.tools) if body.tools else None,
            tool_choice=wire_tool_choice(body),
            chat_template_kwargs=variables | (body.chat_template_kwargs or {}),
            continue_final_message=continued or None,
        )

    def _prompt(self, body: MessagesRequest) -> Prompt:
        """All but its text."""
        if body.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, got {body.max_tokens}", param="max_tokens")
        budget = None  # of a model whose thoughts are known by their marks
        if body.thinking is not None and body.thinking.type == "enabled" and self._manager.thought_marks is not None:
            budget = body.thinking.budget_tokens
        params = request_params(
            {
                "max_new_tokens": body.max_tokens,
                "stop": body.stop_sequences,
                "temperature": body.temperature,
                "top_p": body.top_p,
                "top_k": body.top_k,
                "sampling_seed": body.seed,
                "stop_token_ids": body.stop_token_ids,
                "custom_params": body.custom_params,
                "thinking_budget": budget,
                "json_schema": answer_schema(body),
            },
            self._manager,
            RENAMED,
        )
        return Prompt(
            params,
            rid=f"msg_{uuid.uuid4().hex}",
            stream=bool(body.stream),
            extra_key=cache_key(body.cache_salt, None),
        )

    def _head(self, body: MessagesRequest, prompt: Prompt) -> dict:
        return {"id": prompt.rid, "type": "message", "role": "assistant", "model": body.model}

    def _usage(self, answer: Answer) -> dict:
        """Input tokens are those that no cache had; null: the server does not tell (--enable-cache-report)."""
        g = answer.generation
        cached = g.report.cached_tokens if self._manager.args.enable_cache_report else None
        return {
            "input_tokens": g.prompt_tokens - (cached or 0),
            "cache_creation_input_tokens": None,
            "cache_read_input_tokens": cached,
            "output_tokens": g.completion_tokens,
        }


def answer_schema(body: CountTokensRequest) -> dict | None:
    """The schema that the answer's text must match. Raises RequestError."""
    form = body.output_config and body.output_config.format
    if form is not None and body.output_format is not None:
        raise RequestError(
            "output_config.format and output_format are both given; an answer can have one form", param="output_format"
        )
    place = "output_config.format" if body.output_format is None else "output_format"
    form = form if body.output_format is None else body.output_format
    return None if form is None else form_schema(form, place, ("json_schema",))


def stop_fields(answer: Answer) -> dict:
    """Why it ended. Raises RequestError for one that was aborted: the API has no name for that."""
    finish, reason = answer.generation.finish, answer.finish_reason
    if reason not in STOP_REASONS:
        raise RequestError(finish.message or "the request was aborted", status=503)
    if reason == "stop" and isinstance(finish.matched, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": finish.matched}
    return {"stop_reason": STOP_REASONS[reason], "stop_sequence": None}


def content_blocks(events: list[Event], calls: list[Call]) -> list[dict]:
    """The blocks of an answer that has ended, in the order in which the model made them."""
    blocks: list[dict] = []
    for event in events:
        match event:
            case Text(text):
                _extend(blocks, {"type": "text", "text": text}, "text")
            case Thought(text):
                _extend(blocks, {"type": "thinking", "thinking": text, "signature": ""}, "thinking")
            case CallStart(index, id, name) if calls[index].complete:
                arguments = msgspec.Raw(calls[index].arguments.encode())  # JSON that the parser has made
                blocks.append({"type": "tool_use", "id": id, "name": name, "input": arguments})
    return blocks


def _extend(blocks: list[dict], block: dict, field: str) -> None:
    if blocks and blocks[-1]["type"] == block["type"]:
        blocks[-1][field] += block[field]
    else:
        blocks.append(block)


class BlockEvents:
    """An answer's events as those of a stream of content blocks, of which one is open at a time."""

    def __init__(self) -> None:
        self._index = -1
        self._open: str | None = None  # its type

    def of(self, event: Event) -> list[dict]:
        match event:
            case Text(text):
                begin = self._enter({"type": "text", "text": ""})
                return [*begin, self._delta({"type": "text_delta", "text": text})]
            case Thought(text):
                begin = self._enter({"type": "thinking", "thinking": "", "signature": ""})
                return [*begin, self._delta({"type": "thinking_delta", "thinking": text})]
            case CallStart(_, id, name):
                return [*self.close(), *self._enter({"type": "tool_use", "id": id, "name": name, "input": {}})]
            case CallArguments(_, text):
                return [self._delta({"type": "input_json_delta", "partial_json": text})]
            case CallEnd():
                return self.close()
        raise TypeError(f"unknown event {event!r}")

    def _enter(self, block: dict) -> list[dict]:
        if self._open == block["type"]:
            return []
        before = self.close()
        self._index += 1
        self._open = block["type"]
        return [*before, {"type": "content_block_start", "index": self._index, "content_block": block}]

    def _delta(self, delta: dict) -> dict:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def close(self) -> list[dict]:
        kind, self._open = self._open, None
        if kind is None:
            return []
        signature = [self._delta({"type": "signature_delta", "signature": ""})] if kind == "thinking" else []
        return [*signature, {"type": "content_block_stop", "index": self._index}]
