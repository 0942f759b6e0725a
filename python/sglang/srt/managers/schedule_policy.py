"""SchedulePolicy: which requests the next step serves. It counts tokens and slots; it launches and frees nothing,
except that a chunk it admits has its cached prefix locked, so that the counts stay true."""

import logging

from sglang.srt.managers.kv_manager import KVManager
from sglang.srt.managers.schedule_batch import Chunk, Piece, Req, StepPlan
from sglang.srt.mem_cache.host_tier import Load
from sglang.srt.mem_cache.radix_cache import Match

logger = logging.getLogger(__name__)

LPM_QUEUE_LIMIT = 128  # matching every waiting prompt costs more than its order gains beyond this, as upstream found
MAX_RESERVED_NEW_TOKENS = 4096  # a request's future output counts against admission up to here
# Bytes that come from the host beside others' step, so that it is not held up: at the 50 GB/s of PCIe 5 they take 3 ms,
# less than a decode step does, and 10 us for each prompt token, which takes longer to compute.
LOAD_BYTES = 128 << 20
LOAD_BYTES_A_TOKEN = 512 << 10


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
        most = len(running) * kv.decode_tokens  # without a host tier nobody needs more
        if not running or (kv.tier is None and kv.room().fits(most, most)):
            return None
        decoding = sum(not r.is_prefilling and r.wants_token for r in running)
        needed = decoding * kv.decode_tokens, decoding * kv.decode_tokens
        if not decoding:  # of the others one must go on
            needed = min((next_slots(r) for r in running if r.is_prefilling), default=needed)
        if kv.room().fits(*needed):
            return None
        return max(running, key=lambda r: r.order)

    def plan(self, waiting: list[Req], running: list[Req], kv: KVManager) -> StepPlan:
        """The next step over `running`, with requests of `waiting` admitted while rows, tokens and slots last.

        Matched prefixes of admitted requests come back locked.
        """
        decodes = [r for r in running if not r.is_prefilling and r.wants_token]
        plan = StepPlan()
        budget = PrefillBudget(self, running if waiting else [], decodes, kv)
        prefilling = [r for r in running if r.is_prefilling] if len(decodes) < len(running) else []
        for req in prefilling:
            if req.load is None:
                budget.continue_chunk(plan, req, req.computed)
        for req in prefilling:
            if req.load is not None:
                budget.continue_load(plan, req)
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
            return sorted(waiting, key=lambda r: (-kv.cached_tokens(r), r.order))
        return waiting


def next_slots(req: Req) -> tuple[int, int]:
    """The least full and sliding slots with which a step can compute some of the request's prompt."""
    load = req.load
    if load is None:
        return 1, 1
    return load.length - req.computed + 1, load.swa_tokens(req.computed, load.length) + 1


class PrefillBudget:
    """What is left for prefill in one step: tokens, rows, slots of both kinds and bytes from the host.

    A prefix comes from the host in pieces, a step each, beside what others compute; the request's own prompt goes on
    when all have come. Where nobody else computes, it comes at once and the step waits for it.
    """

    def __init__(self, policy: SchedulePolicy, running: list[Req], decodes: list[Req], kv: KVManager):
        self.kv = kv
        self.decodes = len(decodes)
        self.load_bytes = LOAD_BYTES
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

    def continue_chunk(self, plan: StepPlan, req: Req, start: int) -> None:
        """The next chunk, from position `start` on, of a prompt that is already running."""
        count = self.room.most(min(req.prefill_end - start, self.tokens))
        if count > 0:
            self.take(count)
            self.reserved -= count
            plan.chunks.append(Chunk(req, count))

    def continue_load(self, plan: StepPlan, req: Req) -> None:
        """The next piece of what a running request's prompt begins with."""
        load, beside = req.load, self.decodes or plan.chunks
        piece = self.piece(plan, req, load, req.computed)
        if self.room.fits(piece.tokens, piece.swa_tokens) if beside else self.room.fits(*next_slots(req)):
            self.take_piece(plan, piece)
            self.reserved -= piece.tokens
            if not beside:
                self.continue_chunk(plan, req, load.length)

    def piece(self, plan: StepPlan, req: Req, load: Load, start: int) -> Piece:
        """As much of a load, from position `start` on, as can come in this step: all where nobody else computes."""
        tokens = load.length - start
        if self.decodes or plan.chunks:
            tokens = self.kv.tier.piece(load, start, self.load_bytes)
        return Piece(req, tokens, load.swa_tokens(start, start + tokens))

    def take_piece(self, plan: StepPlan, piece: Piece) -> None:
        full_bytes, swa_bytes = self.kv.tier.token_bytes
        self.load_bytes = max(0, self.load_bytes - piece.tokens * full_bytes - piece.swa_tokens * swa_bytes)
        self.room.take(piece.tokens, piece.swa_tokens)
        plan.pieces.append(piece)

    def admit(self, plan: StepPlan, req: Req) -> bool:
        """Start a waiting request with as much of its prompt as fits; False: no more can be admitted this step."""
        if self.rows == 0 or (self.tokens <= 0 and self.kv.tier is None):
            return False
        match = self.kv.match(req)
        self.kv.cache.lock(match.node)  # it can no longer be evicted, which the room knows
        load = self.kv.find_load(req, match)
        # One request alone always fits in the end (it was accepted), whatever it is expected to need.
        alone = not plan.pieces and not plan.chunks and self.rows == len(self.kv.full_table) - 1
        admitted = load is not None and self.admit_load(plan, req, match, load, alone)
        if not admitted and (load is None or alone):
            admitted = self.admit_chunk(plan, req, match, alone)
        if not admitted:
            self.kv.cache.unlock(match.node)
        return admitted

    def admit_chunk(self, plan: StepPlan, req: Req, match: Match, alone: bool) -> bool:
        rest, later = self.wanted(req, match)
        count = min(rest, self.tokens) if self.chunked else rest
        if alone and self.chunked:
            count = self.room.most(count)
        fits = 0 < count and self.room.fits(count, count)
        fits &= alone or self.room.fits(later + self.reserved, count)
        if not fits or self.waits_for_chunks(plan, count):
            return False
        self.take(count)
        self.reserved += later - count
        self.rows -= 1
        plan.chunks.append(Chunk(req, count, match))
        return True

    def admit_load(self, plan: StepPlan, req: Req, match: Match, load: Load, alone: bool) -> bool:
        """With what host memory has of its prefix, or a first piece of that; its own prompt follows."""
        _, later = self.wanted(req, match)
        prompt = req.num_tokens - load.length
        count = 1 if self.chunked else prompt  # without that the load would be of no use
        full = load.length - match.length + count
        swa = load.swa_tokens(match.length, load.length) + count
        if not self.room.fits(full if alone else later + self.reserved, swa) or self.waits_for_chunks(plan, count):
            return False
        self.kv.tier.begin(load)
        beside = self.decodes or plan.chunks
        piece = self.piece(plan, req, load, match.length)
        piece.match, piece.load = match, load
        self.take_piece(plan, piece)
        self.reserved += later - piece.tokens
        self.rows -= 1
        if not beside:
            count = self.room.most(min(prompt, self.tokens)) if self.chunked else prompt
            self.take(count)
            self.reserved -= count
            plan.chunks.append(Chunk(req, count))
        return True

    def wanted(self, req: Req, match: Match) -> tuple[int, int]:
        """Tokens of a waiting request beyond its cached prefix: those there are, and those it is expected to have."""
        rest = req.num_tokens - match.length
        left = min(req.max_new_tokens - len(req.output_ids), MAX_RESERVED_NEW_TOKENS)
        return rest, rest + int(left * self.ratio)

    def waits_for_chunks(self, plan: StepPlan, count: int) -> bool:
        """Whether a prompt that is computed at once is too long to go with others."""
        return not self.chunked and count > self.tokens and bool(plan.chunks)

    def take(self, count: int) -> None:
        self.tokens -= count
        self.load_bytes += count * LOAD_BYTES_A_TOKEN
        self.room.take(count, count)
