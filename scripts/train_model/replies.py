"""Replies to talks with tools, thoughts and JSON, in parts: from transformers' greedy `generate`, or over a server's
/v1/chat/completions, whose own template and parser then count too.

Both are called with talks up to the reply wanted and give one Output each. Knows no test set and no scores.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import torch
from tool_talks.talk import QUOTE, Call

STOPS = {1, 106, 50}
MAX_NEW_TOKENS = 200
THOUGHT = re.compile(r"\A(?:<\|channel>thought\n)?(.*?)\n?<channel\|>", re.DOTALL)
CALLS = re.compile(r"(?:<\|tool_call>call:[^{}]+\{.*?\}<tool_call\|>)+", re.DOTALL)
CALL = re.compile(r"<\|tool_call>call:([^{}]+)(\{.*?\})<tool_call\|>", re.DOTALL)


@dataclass(frozen=True)
class Ask:
    """What a reply is wanted to: messages as `tool_talks.talk.messages` makes them, functions that may be called."""

    messages: list[dict]
    tools: list[dict] | None
    thinking: bool
    schema: dict | None = None  # holds the reply, behind its thought

    @property
    def opens_thought(self) -> bool:
        """Behind a result the prompt itself opens the thought."""
        return self.thinking and self.messages[-1]["role"] == "tool"


@dataclass(frozen=True)
class Output:
    """One reply in parts."""

    thought: str | None
    calls: list[Call]
    content: str


# ---- transformers ----


def value_of(text: str, at: int) -> tuple[object, int]:
    """The value that begins at `at`, in the strict grammar of the chat template, and where it ends."""
    if text.startswith(QUOTE, at):
        end = text.index(QUOTE, at + len(QUOTE))
        return text[at + len(QUOTE) : end], end + len(QUOTE)
    if text[at] == "{":
        out, at = {}, at + 1
        while text[at] != "}":
            key, at = text[at : (colon := text.index(":", at))], colon + 1
            out[key], at = value_of(text, at)
            at += text[at] == ","
        return out, at + 1
    if text[at] == "[":
        items, at = [], at + 1
        while text[at] != "]":
            item, at = value_of(text, at)
            items.append(item)
            at += text[at] == ","
        return items, at + 1
    bare = re.compile(r"[^,}\]]+").match(text, at)
    return json.loads(bare.group()), bare.end()


def parse(text: str, open_thought: bool) -> Output:
    """Text with its marks, up to the token that ended it. A call that breaks the grammar is none."""
    thought = THOUGHT.match(text) if open_thought or text.startswith("<|channel>") else None
    rest = text[thought.end() :] if thought else text
    calls = []
    if CALLS.fullmatch(rest):
        for name, arguments in CALL.findall(rest):
            try:
                value, end = value_of(arguments, 0)
            except (ValueError, IndexError, AttributeError):
                return Output(thought and thought.group(1), [], rest)
            if end == len(arguments):
                calls.append((name, value))
    return Output(thought and thought.group(1), calls, "" if calls else rest)


class Generated:
    """transformers' greedy replies, `batch` at a time as one left-padded batch; schemas need xgrammar."""

    def __init__(self, model, tokenizer, batch: int = 500):
        self.model, self.tokenizer, self.batch = model, tokenizer, batch

    def __call__(self, asks: list[Ask]) -> list[Output]:
        out = []
        for start in range(0, len(asks), self.batch):
            some = asks[start : start + self.batch]
            texts = self.texts(some)
            out += [parse(text, ask.opens_thought) for ask, text in zip(some, texts, strict=True)]
        return out

    @torch.no_grad()
    def texts(self, asks: list[Ask]) -> list[str]:
        """With their marks, without the token that ended them."""
        ids = [
            self.tokenizer.apply_chat_template(
                ask.messages, tools=ask.tools, add_generation_prompt=True, enable_thinking=ask.thinking
            )["input_ids"]
            for ask in asks
        ]
        longest = max(map(len, ids))
        tokens = torch.tensor([[0] * (longest - len(i)) + i for i in ids], device=self.model.device)
        held = any(ask.schema for ask in asks)
        extra = {"logits_processor": [self.holder(asks, longest)]} if held else {}
        made = self.model.generate(
            tokens, attention_mask=(tokens != 0).long(), do_sample=False, max_new_tokens=MAX_NEW_TOKENS, **extra
        )
        texts = []
        for row in made[:, longest:].tolist():
            end = next((i for i, token in enumerate(row) if token in STOPS), len(row))
            texts.append(self.tokenizer.decode(row[:end], skip_special_tokens=False))
        return texts

    def holder(self, asks: list[Ask], prompt_length: int):
        """A logits processor that holds each row of a batch to its schema, behind its thought."""
        import xgrammar

        vocab_size = self.model.config.vocab_size
        info = xgrammar.TokenizerInfo.from_huggingface(self.tokenizer, vocab_size=vocab_size)
        compiler = xgrammar.GrammarCompiler(info)
        channel_end = self.tokenizer.convert_tokens_to_ids("<channel|>")
        grammars = [compiler.compile_json_schema(json.dumps(ask.schema), any_whitespace=False) for ask in asks]
        matchers = [xgrammar.GrammarMatcher(grammar) for grammar in grammars]
        begun = [not ask.thinking for ask in asks]
        bitmask = xgrammar.allocate_token_bitmask(1, vocab_size)

        def hold(ids, scores):
            for i, row in enumerate(ids.tolist()):
                fresh = len(row) > prompt_length
                if begun[i] and fresh and not matchers[i].is_terminated():
                    assert row[-1] == channel_end or matchers[i].accept_token(row[-1]), "the mask let a token through"
                begun[i] = begun[i] or (fresh and row[-1] == channel_end)
                if begun[i] and not matchers[i].is_terminated():
                    matchers[i].fill_next_token_bitmask(bitmask)
                    xgrammar.apply_token_bitmask_inplace(scores[i : i + 1], bitmask)
            return scores

        return hold


# ---- a server ----


class Served:
    """A server's greedy replies, `concurrency` at a time."""

    def __init__(self, base_url: str, concurrency: int = 32):
        limits = httpx.Limits(max_connections=concurrency)
        self.client = httpx.Client(base_url=base_url, timeout=600, limits=limits, trust_env=False)
        self.concurrency = concurrency

    def __call__(self, asks: list[Ask]) -> list[Output]:
        """Raises httpx.HTTPStatusError for a request that is refused."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(self.reply, asks))

    def reply(self, ask: Ask) -> Output:
        body = {
            "model": "served",
            "messages": wire_messages(ask.messages),
            "temperature": 0,
            "max_tokens": MAX_NEW_TOKENS,
            "chat_template_kwargs": {"enable_thinking": ask.thinking},
        }
        if ask.tools:
            body["tools"] = [{"type": "function", "function": tool} for tool in ask.tools]
        if ask.schema:
            form = {"name": "form", "strict": True, "schema": ask.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        reply = self.client.post("/v1/chat/completions", json=body).raise_for_status().json()
        message = reply["choices"][0]["message"]
        functions = [call["function"] for call in message["tool_calls"] or []]
        calls = [(function["name"], json.loads(function["arguments"])) for function in functions]
        return Output(message["reasoning_content"], calls, message["content"] or "")


def wire_messages(messages: list[dict]) -> list[dict]:
    """As OpenAI's API wants them: arguments as text, and an id that ties each result to its call."""
    out, ids = [], iter(())
    for at, message in enumerate(messages):
        if calls := message.get("tool_calls"):
            names = [f"call_{at}_{i}" for i in range(len(calls))]
            wired = [
                {"id": id, "type": "function", "function": f | {"arguments": json.dumps(f["arguments"])}}
                for id, f in zip(names, (call["function"] for call in calls), strict=True)
            ]
            message, ids = message | {"tool_calls": wired}, iter(names)
        elif message["role"] == "tool":
            message = message | {"tool_call_id": next(ids)}
        out.append(message)
    return out
