"""/generate: the native endpoint: its request fields, its answers and its stream. The offline Engine speaks it too."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

from sglang.srt.constrained.thoughts import ThoughtTracker
from sglang.srt.entrypoints.checks import cache_key, refuse_unserved, sampling_params, unserved_fields
from sglang.srt.entrypoints.replies import ANSWER_WORK, Turns, event
from sglang.srt.managers.generation import Generation, Prompt, RequestError
from sglang.srt.managers.io_struct import Logprobs
from sglang.srt.managers.tokenizer_manager import MAX_GENERATIONS, TokenizerManager, too_many_generations
from sglang.srt.sampling.sampling_params import MAX_STOP

MAX_REPEATED_LOGPROBS = 20_000_000  # in one stream: 2,000 tokens with the best 5 have 12 million
MAX_IDS = 2_000_000  # token ids in one call: more than a body of ordinary ids can hold


NOT_SERVED = (
    "input_embeds", "positional_embed_overrides", "image_data", "audio_data", "video_data", "use_audio_in_video",
    "modalities", "mm_hashes", "images_config", "max_dynamic_patch", "min_dynamic_patch", "image_max_dynamic_patch",
    "video_max_dynamic_patch", "lora_path", "lora_id", "session_params", "priority", "custom_logit_processor",
    "background", "no_logs", "return_hidden_states", "return_routed_experts",
    "routed_experts_start_len", "return_sampling_mask", "return_flat_raw_top_logprobs",
    "return_flat_raw_top_logprobs_b64", "return_indexer_topk", "return_bytes", "return_entropy",
    "return_prompt_token_ids", "multi_item_delimiter_indices", "bootstrap_host", "bootstrap_port", "bootstrap_room",
    "bootstrap_pair_key", "decode_tp_size", "routed_dp_rank", "data_parallel_rank", "disagg_prefill_dp_rank",
    "http_worker_ipc", "need_wait_for_mm_inputs", "num_items_assigned", "mm_data_mooncake", "encoder_urls",
)  # fmt: skip


class GenerateRequest(unserved_fields(*NOT_SERVED), kw_only=True, forbid_unknown_fields=True):
    """Body of /generate. One prompt, or lists: a field of a batch is one value for all or a list with one for each."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    rid: str | list[str] | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None
    token_ids_logprob: list[int | list[int] | None] | None = None
    return_text_in_logprobs: bool | None = None
    stream: bool | None = None
    max_thinking_tokens: int | list[int | None] | None = None  # the sampling parameter thinking_budget
    extra_key: str | list[str] | None = None
    cache_salt: str | list[str] | None = None
    require_reasoning: bool | None = None  # a grammar begins behind the thought
    log_metrics: bool | None = None  # false: /metrics does not count this request

    # Of no effect on the answer: bookkeeping of routers and tracers
    model: Any = None
    stream_options: Any = None
    session_id: Any = None
    conversation_id: Any = None
    routing_key: Any = None
    custom_labels: Any = None
    external_trace_header: Any = None
    received_time: Any = None


def item_type(items: list, field: str) -> type:
    """The one type of a list's entries. Raises RequestError when there is none, or more than one."""
    types = set(map(type, items))
    if not types:
        raise RequestError(f"{field} is an empty list", param=field)
    if len(types) > 1:
        raise RequestError(f"{field} mixes {' and '.join(sorted(t.__name__ for t in types))} entries", param=field)
    return types.pop()


def check_counts(items: list, field: str) -> None:
    """Limits of a list of prompts or of ids, before anything is done for each of them. Raises RequestError."""
    if not items or isinstance(items[0], int):
        ids = len(items)
    else:
        if len(items) > MAX_GENERATIONS:
            raise too_many_generations(len(items))
        ids = sum(len(item) for item in items if isinstance(item, list))
    if ids > MAX_IDS:
        raise RequestError(f"{field} has {ids} token ids, at most {MAX_IDS} are possible in one call", param=field)


def batch_rids(rid: str, count: int) -> list[str]:
    """A name for each of `count` prompts from the one that the client gave, as upstream makes them."""
    return [rid] if count == 1 else [f"{rid}_{i}" for i in range(count)]


def check_patterns(all_params: list[dict[str, Any]]) -> None:
    """Each pattern is compiled, which takes a millisecond or more. Raises RequestError for too many different ones."""
    patterns: set[str] = set()
    for params in all_params:
        given = params.get("stop_regex")
        patterns.update(p for p in (given if isinstance(given, list) else [given]) if isinstance(p, str))
    if len(patterns) > MAX_STOP:
        raise RequestError(
            f"the sampling parameters hold {len(patterns)} different stop_regex, at most {MAX_STOP} are possible in "
            "one call: make several requests of it",
            param="stop_regex",
        )


def _with_budget(params: dict[str, Any], budget: int | None) -> dict[str, Any]:
    if budget is None:
        return params
    if params.get("thinking_budget") not in (None, budget):
        raise RequestError(
            f"max_thinking_tokens is {budget} and sampling_params.thinking_budget {params['thinking_budget']}: they "
            "mean the same, give one",
            param="max_thinking_tokens",
        )
    return params | {"thinking_budget": budget}


def make_prompts(body: GenerateRequest, defaults: dict[str, Any] | None = None) -> tuple[list[Prompt], bool]:
    """The prompts of a request, and whether it is a batch, which is answered by a list. `defaults` are sampling
    parameters for what the request leaves out."""
    refuse_unserved(body)
    if (body.text is None) == (body.input_ids is None):
        raise RequestError("exactly one of text and input_ids must be given", param="text")
    field = "text" if body.text is not None else "input_ids"
    given = getattr(body, field)
    if isinstance(given, list):
        check_counts(given, field)
    is_batch = isinstance(given, list) and item_type(given, field) is not int
    items = given if is_batch else [given]

    def per_prompt(name: str, default: Any, is_list: bool | None = None) -> list:
        value = getattr(body, name)
        if value is None:
            return [default] * len(items)
        if not (isinstance(value, list) if is_list is None else is_list):
            return [value] * len(items)
        if not is_batch:
            raise RequestError(f"{name} is a list, but there is one prompt", param=name)
        if len(value) != len(items):
            raise RequestError(f"{name} has {len(value)} entries for {len(items)} prompts", param=name)
        return value

    selected = body.token_ids_logprob
    if selected and len(selected) > MAX_GENERATIONS:
        raise RequestError(f"token_ids_logprob has {len(selected)} ids or lists", param="token_ids_logprob")
    nested = bool(selected) and item_type([x for x in selected if x is not None] or [[]], "token_ids_logprob") is list
    columns = {
        "rid": per_prompt("rid", None) if not isinstance(body.rid, str) else batch_rids(body.rid, len(items)),
        "return_logprob": per_prompt("return_logprob", False),
        "logprob_start_len": per_prompt("logprob_start_len", -1),
        "top_logprobs_num": per_prompt("top_logprobs_num", 0),
        "token_ids_logprob": per_prompt("token_ids_logprob", None, is_list=nested),
    }
    extra_keys = list(map(cache_key, per_prompt("cache_salt", None), per_prompt("extra_key", None)))
    given_params, budget = body.sampling_params, body.max_thinking_tokens
    if isinstance(given_params, list):
        check_patterns(given_params)
    if isinstance(given_params, list) or isinstance(budget, list):
        budgets = per_prompt("max_thinking_tokens", None)
        given_params = map(_with_budget, per_prompt("sampling_params", {}), budgets)
        params = [sampling_params(values, defaults) for values in given_params]
    else:
        params = [sampling_params(_with_budget(given_params or {}, budget), defaults)] * len(items)
    prompts = []
    for i, item in enumerate(items):
        options = {name: column[i] for name, column in columns.items()}
        options |= {field: item, "stream": bool(body.stream), "log_metrics": body.log_metrics is not False}
        options["after_thought"] = bool(body.require_reasoning)
        prompts.append(Prompt(params[i], extra_key=extra_keys[i], **options))
    return prompts, is_batch or any(p.n > 1 for p in params)


class GenerateApi:
    """Answers of /generate, as dicts."""

    def __init__(self, manager: TokenizerManager):
        self._manager = manager

    async def answer(self, body: GenerateRequest) -> dict | list[dict]:
        prompts, is_batch = make_prompts(body, self._manager.args.preferred_sampling_params)
        async with self._manager.generate(prompts) as group:
            answers, turns = [], Turns()
            for generation in await group.all():
                answers.append(await self._whole(generation, self._tables(body, generation)))
                await turns.did(ANSWER_WORK)
        return answers if is_batch else answers[0]

    async def chunks(self, body: GenerateRequest) -> AsyncGenerator[dict, None]:
        """Answers so far, whenever there is news; with --incremental-streaming-output only what is new.
        Those of a batch carry their `index`."""
        prompts, is_batch = make_prompts(body, self._manager.args.preferred_sampling_params)
        incremental = self._manager.args.incremental_streaming_output
        sent: dict[int, tuple[int, int]] = {}  # index -> characters, tokens
        tables: dict[int, Tables] = {}  # by index
        repeated = 0
        async with self._manager.generate(prompts) as group:
            async for generations in group.news():
                for g in generations:
                    chars, tokens = sent.get(g.index, (0, 0)) if incremental else (0, 0)
                    if g.index not in tables:
                        tables[g.index] = self._tables(body, g)
                    rows = tables[g.index]
                    chunk = await self._whole(g, rows, chars, tokens)
                    sent[g.index] = (chars + len(chunk["text"]), tokens + len(chunk["output_ids"]))
                    if not incremental:
                        repeated += rows.size
                        check_repeated(repeated)
                    if is_batch:
                        chunk["index"] = g.index
                    yield chunk

    async def events(self, body: GenerateRequest) -> AsyncGenerator[bytes, None]:
        async for chunk in self.chunks(body):
            yield event(chunk)

    def _tables(self, body: GenerateRequest, g: Generation) -> "Tables":
        counts = body.require_reasoning or g.prompt.params.thinking_budget is not None
        marks = self._manager.thought_marks if counts else None
        return Tables(bool(body.return_text_in_logprobs), marks and ThoughtTracker(marks, g.prompt_ids))

    async def _whole(self, g: Generation, tables: "Tables", chars: int = 0, tokens: int = 0) -> dict:
        """The answer of this moment from that character and output token on; copies, since a generation goes on
        growing, even while its rows are made here."""
        whole = {"text": g.text[chars:], "output_ids": g.output_ids[tokens:], "meta_info": self._meta_info(g, tables)}
        if g.prompt.return_logprob:
            count = len(g.output_logprobs.ids)
            inputs = (g.input_logprobs or Logprobs([], [])) if g.prompt.logprob_start_len >= 0 and tokens == 0 else None
            text_of = self._manager.require_tokenizer().token_text if tables.with_text else None
            meta = whole["meta_info"]
            meta |= await tables.rows("output", g.output_logprobs, g.prompt, text_of, tokens, count)
            meta["output_token_logprobs_length"] = count
            if inputs is not None:
                meta |= await tables.rows("input", inputs, g.prompt, text_of, 0, len(inputs.ids))
        return whole

    def _meta_info(self, g: Generation, tables: "Tables") -> dict:
        meta = {
            "id": g.rid,
            "finish_reason": finish_reason(g),
            "prompt_tokens": g.prompt_tokens,
            "completion_tokens": g.completion_tokens,
            "cached_tokens": g.report.cached_tokens,
            "reasoning_tokens": tables.thoughts.count(g.output_ids) if tables.thoughts else 0,
            "weight_version": "default",
            "num_retractions": g.report.num_retractions,
        }
        if (steps := self._manager.info.speculative_num_steps) is not None:
            meta |= draft_info(g, steps)
        if g.finish is not None:
            meta["e2e_latency"] = g.ended - g.created
        return meta


class Tables:
    """The rows of [logprob, id, text or null] of a generation, each made once however often a stream repeats it, and
    its `thoughts`, where they are counted."""

    def __init__(self, with_text: bool, thoughts: ThoughtTracker | None = None):
        self.with_text = with_text
        self.thoughts = thoughts
        self.size = 0  # rows in the latest answer
        self._tables: dict[str, list] = {}
        self._turns = Turns()

    async def rows(
        self, side: str, logprobs: Logprobs, prompt: Prompt, text_of: Callable | None, start: int, end: int
    ) -> dict[str, list]:
        """Of the tokens `start` to `end`: for the tokens themselves, the best ones and the ones asked for."""

        def row(value: float | None, token_id: int) -> tuple:
            return value, token_id, text_of(token_id) if text_of else None

        def own(i: int) -> tuple:
            return row(logprobs.values[i], logprobs.ids[i])

        def top(i: int) -> list | None:
            best = logprobs.top[i]
            return best and [row(value, token_id) for value, token_id in best]

        def selected(i: int) -> list | None:
            values = logprobs.selected[i]
            return values and [row(*pair) for pair in zip(values, prompt.token_ids_logprob, strict=True)]

        self.size = (0 if side == "output" else self.size) + (end - start) * prompt.logprob_columns
        found = {f"{side}_token_logprobs": await self._upto(f"{side}_token_logprobs", own, end, 1)}
        if prompt.top_logprobs_num:
            name, count = f"{side}_top_logprobs", end if logprobs.top else 0
            found[name] = await self._upto(name, top, count, prompt.top_logprobs_num)
        if prompt.token_ids_logprob:
            name, count = f"{side}_token_ids_logprobs", end if logprobs.selected else 0
            found[name] = await self._upto(name, selected, count, len(prompt.token_ids_logprob))
        return {name: table[start:end] for name, table in found.items()}

    async def _upto(self, name: str, make: Callable[[int], Any], end: int, columns: int) -> list:
        table = self._tables.setdefault(name, [])
        for i in range(len(table), end):
            table.append(make(i))
            await self._turns.did(columns)
        return table


def check_repeated(rows: int) -> None:
    """A cumulative stream repeats all rows with every event. Raises RequestError."""
    if rows > MAX_REPEATED_LOGPROBS:
        raise RequestError(
            f"this stream has repeated {rows} log-probabilities, at most {MAX_REPEATED_LOGPROBS} are sent: ask for "
            "fewer of them, do not stream, raise stream_interval, or start the server with "
            "--incremental-streaming-output"
        )


def draft_info(g: Generation, steps: int) -> dict:
    """How the request's drafts of `steps` tokens fared, by upstream's names. The accept length counts the token that
    the target adds."""
    histogram = g.report.verified_drafts or []
    verified = sum(histogram)
    correct = sum(tokens * drafts for tokens, drafts in enumerate(histogram))
    proposed = verified * steps
    return {
        "spec_accept_rate": correct / proposed if verified else 0.0,
        "spec_accept_length": 1 + correct / verified if verified else 1.0,
        "spec_verify_ct": verified,
        "spec_num_correct_drafts": correct,
        "spec_num_proposed_drafts": proposed,
        "spec_correct_drafts_histogram": histogram + [0] * (steps + 1 - len(histogram)),
    }


def finish_reason(g: Generation) -> dict | None:
    """upstream's form: {type: stop, matched} | {type: length, length} | {type: abort, message}."""
    if g.finish is None:
        return None
    names = {"stop": ("matched",), "length": ("length",), "abort": ("message", "status_code")}[g.finish.type]
    return {"type": g.finish.type} | {name: getattr(g.finish, name) for name in names}
