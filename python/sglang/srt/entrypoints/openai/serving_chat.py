"""/v1/chat/completions: messages through the checkpoint's template, one assistant message per choice out."""

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from sglang.srt.entrypoints.generate_api import refuse_unserved
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
from sglang.srt.entrypoints.replies import event
from sglang.srt.managers.generation import Generation, Prompt, RequestError
from sglang.srt.managers.tokenizer_manager import TokenizerManager

ROLES = ("system", "developer", "user", "assistant", "tool")
NOT_SERVED = ("functions", "function_call", "audio", "web_search_options", "verbosity")
RENDER_NAMES = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template")


class ChatApi:
    def __init__(self, manager: TokenizerManager):
        self._manager = manager

    async def answer(self, body: ChatCompletionRequest) -> dict:
        prompt = self._prompt(body)
        head = self._head(body, "chat.completion")
        async with self._manager.generate([prompt]) as group:
            generations = await group.all()
        choices = [
            {
                "index": g.index,
                "message": {"role": "assistant", "content": g.text, "reasoning_content": None, "tool_calls": None},
                "logprobs": self._logprobs(g, 0),
                **finish_fields(g),
            }
            for g in generations
        ]
        return {**head, "choices": choices, "usage": usage(generations, self._manager.args.enable_cache_report)}

    async def events(self, body: ChatCompletionRequest) -> AsyncGenerator[bytes, None]:
        prompt = self._prompt(body)
        head = self._head(body, "chat.completion.chunk")
        options = body.stream_options
        report = self._manager.args.enable_cache_report
        sent: dict[int, tuple[int, int]] = {}  # index -> characters, tokens

        def piece(g: Generation, delta: dict, logprobs: dict | None = None, finish: dict | None = None) -> bytes:
            choice = {"index": g.index, "delta": delta, "logprobs": logprobs}
            value = {**head, "choices": [choice | (finish or {"finish_reason": None, "matched_stop": None})]}
            if options and options.continuous_usage_stats:
                value["usage"] = usage([g], report)
            return event(value)

        async with self._manager.generate([prompt]) as group:
            async for generations in group.news():
                for g in generations:
                    if g.index not in sent:
                        sent[g.index] = (0, 0)
                        yield piece(g, {"role": "assistant", "content": ""})
                    chars, tokens = sent[g.index]
                    sent[g.index] = (len(g.text), len(g.output_ids))
                    logprobs = self._logprobs(g, tokens) if len(g.output_ids) > tokens else None
                    if len(g.text) > chars or logprobs is not None:
                        yield piece(g, {"content": g.text[chars:]}, logprobs)
                    if g.finish is not None:
                        yield piece(g, {}, finish=finish_fields(g))
            if options and options.include_usage:
                yield event({**head, "choices": [], "usage": usage(group.generations, report)})

    def _head(self, body: ChatCompletionRequest, kind: str) -> dict:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model_name(body, self._manager),
        }

    def _prompt(self, body: ChatCompletionRequest) -> Prompt:
        check_common(body)
        refuse_unserved(body, NOT_SERVED)
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
        limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        # Without a limit an answer may fill the context; the scheduler ends it there.
        params = make_sampling_params(
            body, self._manager, self._manager.info.context_length if limit is None else limit
        )
        return Prompt(
            params,
            text=self._render(body),
            rid=body.rid,
            stream=bool(body.stream),
            return_logprob=bool(body.logprobs),
            top_logprobs_num=body.top_logprobs or 0,
            extra_key=shared_key(body),
            add_special_tokens=False,
        )

    def _render(self, body: ChatCompletionRequest) -> str:
        messages = [clean_message(message, i) for i, message in enumerate(body.messages)]
        if not messages:
            raise RequestError("messages is empty", param="messages")
        continued = bool(body.continue_final_message)
        if continued and messages[-1]["role"] != "assistant":
            raise RequestError("continue_final_message needs an assistant message at the end", param="messages")
        if continued and body.add_generation_prompt:
            raise RequestError(
                "add_generation_prompt contradicts continue_final_message", param="add_generation_prompt"
            )
        variables = {**(self._manager.args.default_chat_template_kwargs or {}), **(body.chat_template_kwargs or {})}
        if body.reasoning_effort is not None:
            variables.setdefault("reasoning_effort", body.reasoning_effort)
        if taken := set(variables) & set(RENDER_NAMES):
            raise RequestError(f"chat_template_kwargs must not hold {min(taken)!r}", param="chat_template_kwargs")
        try:
            return self._manager.require_tokenizer().render_chat(
                messages,
                tools=body.tools if body.tools and body.tool_choice != "none" else None,
                continue_final_message=continued,
                add_generation_prompt=body.add_generation_prompt is not False and not continued,
                variables=variables,
            )
        except ValueError as e:
            raise RequestError(str(e), param="messages") from e

    def _logprobs(self, g: Generation, start: int) -> dict | None:
        if not g.prompt.return_logprob:
            return None
        tokenizer = self._manager.require_tokenizer()
        logprobs = g.output_logprobs

        def entry(value: float, token_id: int) -> dict[str, Any]:
            return {"token": tokenizer.token_text(token_id), "bytes": tokenizer.token_bytes(token_id), "logprob": value}

        content = []
        for i in range(start, len(logprobs.ids)):
            tops = [entry(value, token_id) for value, token_id in logprobs.top[i]] if logprobs.top else []
            content.append(entry(logprobs.values[i], logprobs.ids[i]) | {"top_logprobs": tops})
        return {"content": content}


def clean_message(message: dict[str, Any], i: int) -> dict[str, Any]:
    """A message as templates expect it: a known role, content as text. Raises RequestError naming the place."""
    place = f"messages[{i}]"
    role = message.get("role")
    if role not in ROLES:
        raise RequestError(f"{place}.role is {role!r}; one of {', '.join(ROLES)} is expected", param=f"{place}.role")
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(_part_text(part, f"{place}.content[{k}]") for k, part in enumerate(content))
    if content is None and role != "assistant":
        raise RequestError(f"{place}.content is missing", param=f"{place}.content")
    if content is not None and not isinstance(content, str):
        raise RequestError(f"{place}.content must be text or a list of parts", param=f"{place}.content")
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise RequestError(f"{place}.tool_calls must be a list of objects", param=f"{place}.tool_calls")
    # A client that sends an answer back may send its empty fields too; templates ask whether a field is there at all.
    return {k: v for k, v in message.items() if v is not None} | {"content": content or ""}


def _part_text(part: Any, place: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise RequestError(f"{place}: only parts of type text are supported, not {kind!r}", param=place)
    if not isinstance(part.get("text"), str):
        raise RequestError(f"{place}.text is missing", param=place)
    return part["text"]
