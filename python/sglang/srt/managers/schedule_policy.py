"""SchedulePolicy: which requests the next step serves. It counts tokens and slots; it launches and frees nothing,
except that a chunk it admits has its cached prefix locked, so that the counts stay true."""

import logging

from sglang.srt.managers.kv_manager import KVManager
from sglang.srt.managers.schedule_batch import Chunk, Req, StepPlan

logger = logging.getLogger(__name__)

LPM_QUEUE_LIMIT = 128  # matching every waiting prompt costs more than its order gains beyond this, as upstream found
MAX_RESERVED_NEW_TOKENS = 4096  # a request's future output counts against admission up to here


class NewTokenRatio:
    """Which part of the output still allowed is expected to be used: falls slowly, jumps up after a retraction.

    Numbers are upstream's: start 0.7 x conservativeness, floor 0.14 of the start, 600 steps from start to floor.
    """

    def __init__(self, conservativeness: float):
        self.start = min(0.7 * conservativeness, 1.0)
        self.floor = self.start * 0.14
        self.decay = (self.start - self.floor) / 600
        self.value = self.start

    def step(self) -> None:
        self.value = max(self.floor, self.value - self.decay)

    def after_retraction(self, running: list[Req]) -> None:
        """What the remaining requests would need if each went on for another 20 tokens or so, as a ratio."""
        used = sum(len(r.output_ids) for r in running)
        allowed = sum(r.max_new_tokens for r in running)
        self.value = max(self.value, min(1.0, (used + 20 * len(running)) / max(1, allowed)))


class SchedulePolicy:
    """fcfs: in order of arrival. lpm: longest cached prefix first. Prefill budget in tokens a step, -1 chunking off."""

    def __init__(
        self,
        policy: str,
        chunked_prefill_size: int,
        max_prefill_tokens: int,
        prefill_max_requests: int | None = None,
        mixed_chunk: bool = True,
        conservativeness: float = 1.0,
    ):
        self.policy = policy
        self.chunked_prefill_size = chunked_prefill_size
        self.max_prefill_tokens = max_prefill_tokens
        self.prefill_max_requests = prefill_max_requests
        self.mixed_chunk = mixed_chunk
        self.ratio = NewTokenRatio(conservativeness)

    def victim(self, running: list[Req], kv: KVManager) -> Req | None:
        """The request to retract next, the latest arrival, so that the others can go on; None when all can."""
        if not running:
            return None
        decoding = sum(not r.is_prefilling and r.wants_token for r in running)
        needed = decoding * kv.decode_tokens
        if not decoding and any(r.is_prefilling for r in running):
            needed = 1  # else nothing would go on
        if kv.room().fits(needed, needed):
            return None
        return max(running, key=lambda r: r.order)

    def plan(self, waiting: list[Req], running: list[Req], kv: KVManager) -> StepPlan:
        """The next step over `running`, with requests of `waiting` admitted while rows, tokens and slots last.

        Matched prefixes of admitted requests come back locked.
        """
        decodes = [r for r in running if not r.is_prefilling and r.wants_token]
        plan = StepPlan()
        budget = PrefillBudget(self, running, decodes, kv)
        for req in running:
            if req.is_prefilling:
                budget.continue_chunk(plan, req)
        for req in self.order(waiting, kv):
            if self.prefill_max_requests is not None and len(plan.chunks) >= self.prefill_max_requests:
                break
            # A request just retracted may still await a token of the step in flight; later arrivals wait behind it.
            if req.pending or not budget.admit(plan, req):
                break
        if self.mixed_chunk or not plan.chunks:
            plan.decodes = decodes
        self.ratio.step()
        return plan

    def order(self, waiting: list[Req], kv: KVManager) -> list[Req]:
        if self.policy == "lpm" and 1 < len(waiting) <= LPM_QUEUE_LIMIT:
            return sorted(waiting, key=lambda r: (-kv.match(r).length, r.order))
        return waiting


class PrefillBudget:
    """What is left for prefill in one step: tokens, rows and slots of both kinds."""

    def __init__(self, policy: SchedulePolicy, running: list[Req], decodes: list[Req], kv: KVManager):
        self.kv = kv
        self.rows = len(kv.free_rows)
        self.tokens = policy.max_prefill_tokens
        self.chunked = policy.chunked_prefill_size > 0
        if self.chunked:
            self.tokens = min(self.tokens, policy.chunked_prefill_size - len(decodes) * policy.mixed_chunk)
        self.room = kv.room()
        self.room.take(len(decodes) * kv.decode_tokens, len(decodes) * kv.decode_tokens)
        self.ratio = policy.ratio.value
        # Slots the running requests are expected to want later.
        self.reserved = sum(self.expected_growth(r) for r in running)

    def expected_growth(self, req: Req) -> int:
        left = req.max_new_tokens - len(req.output_ids) - req.pending
        rest_of_prompt = max(0, req.prefill_end - req.computed)
        return rest_of_prompt + int(min(left, MAX_RESERVED_NEW_TOKENS) * self.ratio)

    def continue_chunk(self, plan: StepPlan, req: Req) -> None:
        """The next chunk of a prompt that is already running."""
        count = self.room.most(min(req.prefill_end - req.computed, self.tokens))
        if count > 0:
            self.take(count)
            self.reserved -= count
            plan.chunks.append(Chunk(req, count))

    def admit(self, plan: StepPlan, req: Req) -> bool:
        """Start a waiting request with as much of its prompt as fits; False: no more can be admitted this step."""
        if self.rows == 0 or self.tokens <= 0:
            return False
        match = self.kv.match(req)
        self.kv.cache.lock(match.node)  # it can no longer be evicted, which the room knows
        rest = req.num_tokens - match.length
        count = min(rest, self.tokens) if self.chunked else rest
        left = min(req.max_new_tokens - len(req.output_ids), MAX_RESERVED_NEW_TOKENS)
        later = rest + int(left * self.ratio)
        alone = len(plan.chunks) == 0 and self.rows == len(self.kv.full_table) - 1
        if alone and self.chunked:
            count = self.room.most(count)
        # One request alone always fits in the end (it was accepted), whatever it is expected to need.
        fits = 0 < count and self.room.fits(count, count)
        fits &= alone or self.room.fits(later + self.reserved, count)
        if not self.chunked and count > self.tokens and plan.chunks:
            fits = False
        if not fits:
            self.kv.cache.unlock(match.node)
            return False
        self.take(count)
        self.reserved += later - count
        self.rows -= 1
        plan.chunks.append(Chunk(req, count, match))
        return True

    def take(self, count: int) -> None:
        self.tokens -= count
        self.room.take(count, count)
