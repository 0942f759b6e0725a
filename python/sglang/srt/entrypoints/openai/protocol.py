"""Request bodies of the OpenAI-compatible endpoints, and what all of them share.

A field that would change the answer and is not served is refused by name; one that cannot change it (bookkeeping that
clients send) is accepted and has no effect; what is unknown to both kinds is ignored with
a line in the log (unknown_fields.py).
"""

from typing import Any

import msgspec

from sglang.srt.entrypoints.checks import (
    cache_key,
    check_model,
    form_schema,
    refuse_unserved,
    request_params,
    unserved_fields,
)
from sglang.srt.managers.generation import Generation, RequestError
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.sampling.sampling_params import SamplingParams

MAX_TOP_LOGPROBS = 20  # OpenAI's own limit


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Any = None  # padding against traffic analysis; of no effect


NOT_SERVED = (
    "lora_path", "priority", "return_hidden_states", "return_token_ids",
    "session_params", "return_routed_experts", "routed_experts_start_len", "return_cached_tokens_details",
    "custom_logit_processor", "images_config", "bootstrap_host", "bootstrap_port", "bootstrap_room", "routed_dp_rank",
    "data_parallel_rank", "disagg_prefill_dp_rank",
)  # fmt: skip
CHAT_NOT_SERVED = (
    "functions", "function_call", "audio", "moderation", "web_search_options", "verbosity", "return_prompt_token_ids",
    "return_meta_info", "task", "input_ids", "max_dynamic_patch", "min_dynamic_patch", "use_audio_in_video",
)  # fmt: skip


class CommonFields(unserved_fields(*NOT_SERVED), kw_only=True):
    """Fields of both /v1/completions and /v1/chat/completions. null means: not given."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None

    # SGLang's own sampling parameters
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    stop_regex: str | list[str] | None = None
    no_stop_trim: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    custom_params: dict | None = None
    json_schema: str | dict[str, Any] | None = None
    regex: str | None = None
    ebnf: str | None = None
    thinking_budget: int | None = None  # tokens of thoughts
    rid: str | list[str] | None = None
    extra_key: str | None = None
    cache_salt: str | None = None

    # Of no effect on the answer
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None
    prediction: Any = None  # a hint for speed only
    session_id: Any = None
    custom_labels: Any = None

    response_format: Any = None  # text, json_object or json_schema


# Our name of a sampling parameter -> the OpenAI field. The others are called the same.
RENAMED = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "sampling_seed": "seed"}
SAME_NAME = (
    "n", "stop", "temperature", "top_p", "frequency_penalty", "presence_penalty", "logit_bias", "top_k", "min_p",
    "repetition_penalty", "stop_token_ids", "stop_regex", "no_stop_trim", "ignore_eos", "skip_special_tokens",
    "custom_params", "regex", "ebnf", "thinking_budget",
)  # fmt: skip


class Reasoning(msgspec.Struct, kw_only=True):
    """Of OpenRouter's form, which upstream reads too."""

    effort: str | None = None
    enabled: bool | None = None
    max_tokens: int | None = None  # as thinking_budget; the model thinks

    @property
    def thinks(self) -> bool | None:
        """None: it does not say."""
        return True if self.enabled is None and self.max_tokens is not None else self.enabled


class CompletionRequest(CommonFields, kw_only=True, forbid_unknown_fields=True):
    prompt: str | list[str | int | list[int]]  # text, texts, ids, or lists of ids
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None


class ChatCompletionRequest(
    unserved_fields(*CHAT_NOT_SERVED, base=CommonFields), kw_only=True, forbid_unknown_fields=True
):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    reasoning_effort: str | None = None
    reasoning: Reasoning | None = None
    separate_reasoning: bool | None = None  # false: thoughts stay in the content
    stream_reasoning: bool | None = None  # false: a thought comes whole, when it has ended
    parallel_tool_calls: bool | None = None  # false: one call a turn
    modalities: list[str] | None = None


def check_common(body: CommonFields) -> None:
    check_model(body.model)
    refuse_unserved(body)
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options needs stream: true", param="stream_options")


FORMS = ("text", "json_object", "json_schema", "structural_tag")


def form_params(body: CommonFields) -> dict[str, Any]:
    """The sampling parameters of the form an answer must have. Raises RequestError for one that is not served."""
    form = body.response_format
    if isinstance(form, dict) and form.get("type") == "structural_tag":
        return {"json_schema": body.json_schema, "structural_tag": form}
    schema = None if form is None else form_schema(form, "response_format", FORMS)
    if schema is not None and body.json_schema:
        raise RequestError(
            "response_format and json_schema are both given; an output can have one form", param="response_format"
        )
    return {"json_schema": body.json_schema if schema is None else schema}


def make_sampling_params(body: CommonFields, manager: TokenizerManager, max_new_tokens: int) -> SamplingParams:
    values = {name: getattr(body, name) for name in SAME_NAME} | {
        name: getattr(body, field) for name, field in RENAMED.items()
    }
    values["max_new_tokens"] = max_new_tokens
    values |= form_params(body)
    if body.seed is not None:
        values["sampling_seed"] = body.seed % 2**63  # OpenAI's may be negative
    return request_params(values, manager, RENAMED)


def shared_key(body: CommonFields) -> str | None:
    return cache_key(body.cache_salt, body.extra_key)


def usage(generations: list[Generation], cache_report: bool) -> dict:
    """Token counts of a call; a prompt counts once, whatever its n."""
    firsts = [g for g in generations if g.sample == 0]
    prompt = sum(g.prompt_tokens for g in firsts)
    completion = sum(g.completion_tokens for g in generations)
    report: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "reasoning_tokens": 0,
    }
    if cache_report:
        report["prompt_tokens_details"] = {"cached_tokens": sum(g.report.cached_tokens for g in firsts)}
    return report


def finish_fields(g: Generation, reason: str | None = None) -> dict:
    """`reason` None: the generation's own."""
    if g.finish is None:
        return {"finish_reason": None, "matched_stop": None}
    return {"finish_reason": reason or g.finish.type, "matched_stop": g.finish.matched}


def model_name(body: CommonFields, manager: TokenizerManager) -> str:
    return body.model or manager.info.served_model_name
