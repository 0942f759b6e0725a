"""From a StepPlan to a StepInput: gives out slots and lays the step's rows out as host arrays."""

import numpy as np

from sglang.srt.managers.kv_manager import KVManager
from sglang.srt.managers.schedule_batch import Req, StepPlan
from sglang.srt.model_executor.step_io import Admission, PromptLogprobs, StepInput
from sglang.srt.sampling.sampling_flags import combine

EMPTY = np.zeros(0, dtype=np.int64)


def build_step(plan: StepPlan, kv: KVManager) -> tuple[StepInput, list[Req], list[Req]]:
    """Apply the plan: returns the step, its requests that get a token and those that get prompt log-probabilities.

    Afterwards `computed` counts the step's tokens and finished prompts are in the prefix cache.
    """
    kv.make_room(*plan.slots(kv.decode_tokens))
    admissions, writes = [], []
    for req, match, load in plan.starts():
        write = kv.admit(req, match, load)
        if write:
            writes.append(write)
        req.prefill_end = req.num_tokens
        if not req.output_ids:
            req.report.cached_tokens = load.length if load else match.length
        admissions.append(
            Admission(req.row, req.params, req.seed, len(req.prompt), sorted(req.stop_ids), list(req.output_ids))
        )
    for piece in plan.pieces:
        writes.append(kv.bring_back(piece.req, piece.tokens))

    prefill_ids, full_slots, swa_slots = [], [], []
    sampled: list[int] = []
    sampled_reqs: list[Req] = []
    prompt_logprobs: list[PromptLogprobs] = []
    logprob_reqs: list[Req] = []
    token_row = 0
    for index, chunk in enumerate(plan.chunks):
        req, count = chunk.req, chunk.tokens
        start = req.computed
        ids = req.prompt if not req.output_ids else req.token_ids()
        wanted = _prompt_logprobs(req, index, start, count, token_row)
        full, swa = kv.append_chunk(req, count)
        prefill_ids.append(ids[start : start + count])
        full_slots.append(full)
        swa_slots.append(swa)
        token_row += count
        if wanted is not None:
            prompt_logprobs.append(wanted)
            logprob_reqs.append(req)
        if not req.is_prefilling:
            sampled.append(index)
            sampled_reqs.append(req)
    rows = [chunk.req.row for chunk in plan.chunks]
    extend_lens = [chunk.tokens for chunk in plan.chunks]
    if plan.decodes:
        full, swa = kv.append_tokens(plan.decodes)
        full_slots.append(full)
        swa_slots.append(swa)
        sampled.extend(range(len(rows), len(rows) + len(plan.decodes)))
        sampled_reqs.extend(plan.decodes)
        rows.extend([req.row for req in plan.decodes])
        extend_lens.extend([kv.decode_tokens] * len(plan.decodes))
    seq_lens = [chunk.req.computed for chunk in plan.chunks] + [req.computed for req in plan.decodes]

    drafted = kv.decode_tokens - 1 if plan.decodes else 0
    want_logprobs = any(req.msg.return_logprob for req in sampled_reqs)
    step = StepInput(
        rows=np.array(rows, dtype=np.int64),
        seq_lens=np.array(seq_lens, dtype=np.int64),
        extend_lens=np.array(extend_lens, dtype=np.int64),
        num_extends=len(plan.chunks),
        prefill_ids=np.concatenate(prefill_ids) if prefill_ids else EMPTY,
        out_cache_loc=np.concatenate(full_slots).astype(np.int64),
        out_cache_loc_swa=np.concatenate(swa_slots).astype(np.int64),
        sampled=np.array(sampled, dtype=np.int64),
        flags=combine([req.next_bits(drafted) for req in sampled_reqs]),
        admissions=admissions,
        table_writes=writes,
        copies=kv.take_copies(),
        prompt_logprobs=prompt_logprobs,
        output_logprobs=[_logprob_request(req) for req in sampled_reqs] if want_logprobs else None,
    )
    for req in sampled_reqs:
        req.pending += 1
    return step, sampled_reqs, logprob_reqs


def _logprob_request(req: Req) -> tuple[int, list[int] | None] | None:
    if not req.msg.return_logprob:
        return None
    return req.msg.top_logprobs_num, req.msg.token_ids_logprob


def _prompt_logprobs(req: Req, index: int, start: int, count: int, token_row: int) -> PromptLogprobs | None:
    """Prompt tokens predicted by this chunk, [start + 1, start + count], cut to those asked for."""
    if not req.wants_prompt_logprobs:
        return None
    first = max(start + 1, req.msg.logprob_start_len)
    last = min(start + count, len(req.prompt) - 1)
    if first > last:
        return None
    token_rows = token_row + np.arange(first - 1 - start, last - start, dtype=np.int64)
    return PromptLogprobs(
        index, token_rows, req.prompt[first : last + 1], req.msg.top_logprobs_num, req.msg.token_ids_logprob
    )
