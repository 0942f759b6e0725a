"""/v1/responses: items in, output items out, whole or as a stream of numbered events; the latest ones are kept."""

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from sglang.srt.entrypoints.chat_prompt import Turn
from sglang.srt.entrypoints.checks import cache_key, check_model, form_schema, refuse_unserved, request_params
from sglang.srt.entrypoints.conversation import Answer, Conversation
from sglang.srt.entrypoints.openai.response_items import (
    OutputItems,
    ResponsesRequest,
    refuse_unanswered,
    wire_messages,
    wire_tools,
)
from sglang.srt.entrypoints.openai.response_store import ResponseStore, Stored
from sglang.srt.entrypoints.replies import named_event
from sglang.srt.managers.generation import Prompt, RequestError

RENAMED = {"max_new_tokens": "max_output_tokens", "sampling_seed": "seed"}
SAME_NAME = (
    "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "stop",
    "stop_token_ids", "custom_params", "thinking_budget",
)  # fmt: skip
LOGPROBS = "message.output_text.logprobs"


class ResponsesApi:
    def __init__(self, conversation: Conversation, store: ResponseStore):
        self._conversation = conversation
        self._manager = conversation.manager
        self._store = store

    async def answer(self, body: ResponsesRequest) -> dict:
        messages = self._messages(body)
        prompt, items = self._prompt(body), OutputItems()
        head = self._head(body, prompt)
        async with self._start(body, messages, prompt) as group:
            (answer,) = await group.all()
        for event in answer.news():
            items.of(event)
        items.end(complete=answer.finish_reason != "length")
        output = [item for item in items.items if not _is_cut_call(item)]
        return self._ended(body, head, messages, answer, output)

    async def events(self, body: ResponsesRequest) -> AsyncGenerator[bytes, None]:
        messages = self._messages(body)
        prompt, items = self._prompt(body), OutputItems()
        head, number = self._head(body, prompt), -1

        def numbered(value: dict) -> bytes:
            nonlocal number
            number += 1
            return named_event(value | {"sequence_number": number})

        try:
            async with self._start(body, messages, prompt) as group:
                (answer,) = group.answers
                async for _ in group.news():
                    if number < 0:
                        for name in ("created", "in_progress"):
                            yield numbered({"type": f"response.{name}", "response": head})
                    for event in answer.news():
                        for value in items.of(event):
                            yield numbered(value)
            for value in items.end(complete=answer.finish_reason != "length"):
                yield numbered(value)
            response = self._ended(body, head, messages, answer, items.items)
        except RequestError as e:
            if number < 0:
                raise  # the status can still say so
            error = {"code": "server_error", "message": e.message}
            failed = head | {"status": "failed", "error": error, "output": items.items}
            yield numbered({"type": "response.failed", "response": failed})
            return
        yield numbered({"type": f"response.{response['status']}", "response": response})

    def _start(self, body: ResponsesRequest, messages: list[dict], prompt: Prompt):
        turn = self._turn(body, messages)
        return self._conversation.start(
            turn, prompt, parallel_calls=body.parallel_tool_calls is not False, schemas_at="parameters"
        )

    def _messages(self, body: ResponsesRequest) -> list[dict]:
        """Those of the conversation so far, without instructions. Raises RequestError."""
        before: list[dict] = []
        if body.previous_response_id is not None:
            stored = self._store.get(body.previous_response_id, "previous_response_id")
            before = msgspec.json.decode(stored.messages)
        messages = before + wire_messages(body.input, before)
        if not messages:
            raise RequestError("input is empty", param="input")
        refuse_unanswered(messages)
        return messages

    def _turn(self, body: ResponsesRequest, messages: list[dict]) -> Turn:
        """What is asked; raises RequestError for what is not served."""
        check_model(body.model)
        refuse_unserved(body)
        if LOGPROBS in (body.include or ()):
            raise RequestError(f"include: {LOGPROBS} is not supported; /v1/chat/completions has logprobs")
        effort = body.reasoning and body.reasoning.effort
        system = [{"role": "system", "content": body.instructions}] if body.instructions else []
        return Turn(
            messages=system + messages,
            tools=wire_tools(body.tools) if body.tools else None,
            tool_choice=body.tool_choice,
            chat_template_kwargs=body.chat_template_kwargs,
            reasoning_effort=effort,
        )

    def _prompt(self, body: ResponsesRequest) -> Prompt:
        """All but its text."""
        limit = body.max_output_tokens
        if limit is not None and limit < 1:
            raise RequestError(f"max_output_tokens must be at least 1, got {limit}", param="max_output_tokens")
        values: dict[str, Any] = {name: getattr(body, name) for name in SAME_NAME}
        values["max_new_tokens"] = self._manager.info.context_length if limit is None else limit
        values["sampling_seed"] = body.seed
        if body.text is not None and body.text.format is not None:
            values["json_schema"] = form_schema(body.text.format, "text.format")
        return Prompt(
            request_params(values, self._manager, RENAMED),
            rid=f"resp_{uuid.uuid4().hex}",
            stream=bool(body.stream),
            extra_key=cache_key(body.cache_salt, body.extra_key),
        )

    def _head(self, body: ResponsesRequest, prompt: Prompt) -> dict:
        """The response before its first item."""
        return {
            "id": prompt.rid,
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata,
            "model": body.model or self._manager.info.served_model_name,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
            "store": body.store is not False,
            "temperature": prompt.params.temperature if body.temperature is None else body.temperature,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": prompt.params.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    def _ended(self, body: ResponsesRequest, head: dict, messages: list[dict], answer: Answer, output: list) -> dict:
        """The whole response, which is kept if it may be. Raises RequestError for one that was aborted."""
        reason = answer.finish_reason
        if reason == "abort":
            raise RequestError(answer.generation.finish.message or "the request was aborted", status=503)
        cut = reason == "length"
        response = head | {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": output,
            "usage": self._usage(answer),
        }
        if body.store is not False:
            said = [item for item in output if not _is_cut_call(item)]
            history = messages + wire_messages(said, messages)
            stored = Stored(msgspec.json.encode(response), msgspec.json.encode(history))
            self._store.put(response["id"], stored)
        return response

    def _usage(self, answer: Answer) -> dict:
        g = answer.generation
        cached = g.report.cached_tokens if self._manager.args.enable_cache_report else 0
        return {
            "input_tokens": g.prompt_tokens,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": g.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": answer.thought_tokens},
            "total_tokens": g.prompt_tokens + g.completion_tokens,
        }


def _is_cut_call(item: dict) -> bool:
    return item["type"] == "function_call" and item["status"] != "completed"
