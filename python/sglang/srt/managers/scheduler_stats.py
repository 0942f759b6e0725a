"""SchedulerStats: the scheduler's log lines and counters. It reads the scheduler's state and changes none of it."""

import logging
import time

from sglang.srt.managers.kv_manager import KVManager
from sglang.srt.managers.schedule_batch import Req, StepPlan

logger = logging.getLogger(__name__)


class SchedulerStats:
    """`decode_log_interval`: steps between two decode log lines (and two readings of the generation throughput).
    `num_draft_steps`: tokens of a draft that could be accepted, None without speculation."""

    def __init__(self, decode_log_interval: int = 40, num_draft_steps: int | None = None):
        self.decode_log_interval = decode_log_interval
        self.num_draft_steps = num_draft_steps
        self.retractions = 0
        self.steps = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generated_tokens = 0
        self.last_gen_throughput = 0.0  # tokens a second
        self.verified = 0  # drafts, one a request and step
        self.accepted_tokens = 0  # of them, and the token that each verification adds
        self._decode_steps = 0
        self._mark_tokens = 0
        self._mark_drafts = (0, 0)  # verified, accepted tokens
        self._mark_time = time.monotonic()

    def on_launch(self, plan: StepPlan, running: list[Req], waiting: list[Req], kv: KVManager) -> None:
        self.steps += 1
        if plan.chunks or plan.pieces:
            self._on_prefill(plan, running, waiting, kv)
        if plan.decodes:
            self._decode_steps += 1
            if self._decode_steps % self.decode_log_interval == 0:
                self._log_decode(plan, waiting, kv)

    def on_tokens(self, count: int) -> None:
        self.generated_tokens += count

    def on_verify(self, accept_lengths: list[int]) -> None:
        """Drafts were verified; each entry counts the accepted tokens and the one the target added."""
        self.verified += len(accept_lengths)
        self.accepted_tokens += sum(accept_lengths)

    def _on_prefill(self, plan: StepPlan, running: list[Req], waiting: list[Req], kv: KVManager) -> None:
        new = sum(chunk.tokens for chunk in plan.chunks)
        cached = sum(load.length if load else match.length for _, match, load in plan.starts())
        self.prompt_tokens += new
        self.cached_tokens += cached
        if logger.isEnabledFor(logging.INFO):
            logger.info(
                "Prefill batch, #new-seq: %d, #new-token: %d, #cached-token: %d, %s, #running-req: %d, #queue-req: %d",
                len(plan.chunks), new, cached, _loaded_text(plan, kv) + _usage_text(kv), len(running), len(waiting),
            )  # fmt: skip

    def _log_decode(self, plan: StepPlan, waiting: list[Req], kv: KVManager) -> None:
        now = time.monotonic()
        self.last_gen_throughput = (self.generated_tokens - self._mark_tokens) / max(now - self._mark_time, 1e-9)
        self._mark_tokens, self._mark_time = self.generated_tokens, now
        if logger.isEnabledFor(logging.INFO):
            logger.info(
                "Decode batch, #running-req: %d, %s, %sgen throughput (token/s): %.2f, #queue-req: %d",
                len(plan.decodes), _usage_text(kv), self._accept_text(), self.last_gen_throughput, len(waiting),
            )  # fmt: skip

    def _accept_text(self) -> str:
        """How drafts fared since the last line."""
        if self.num_draft_steps is None:
            return ""
        verified, accepted = self.verified - self._mark_drafts[0], self.accepted_tokens - self._mark_drafts[1]
        self._mark_drafts = self.verified, self.accepted_tokens
        length = accepted / max(1, verified)
        return f"accept len: {length:.2f}, accept rate: {max(0.0, length - 1) / self.num_draft_steps:.2f}, "

    def state(self) -> dict:
        """JSON-safe counters for /server_info's internal_states."""
        state = {} if self.num_draft_steps is None else {"avg_spec_accept_length": self._accept_length()}
        return state | {
            "last_gen_throughput": round(self.last_gen_throughput, 2),
            "num_steps": self.steps,
            "num_retractions": self.retractions,
            "prompt_tokens_total": self.prompt_tokens,
            "cached_tokens_total": self.cached_tokens,
            "generation_tokens_total": self.generated_tokens,
        }

    def _accept_length(self) -> float:
        """Mean over all drafts verified so far, the target's own token included: 1 is a draft of no use."""
        return self.accepted_tokens / self.verified if self.verified else 1.0


def _loaded_text(plan: StepPlan, kv: KVManager) -> str:
    """What comes back from the host in this step, of what it holds."""
    if kv.tier is None:
        return ""
    usage = kv.tier.usage()
    loaded = sum(piece.tokens for piece in plan.pieces)
    return f"#loaded-token: {loaded}, #host-token: {usage['host_cached']} of {usage['host_capacity']}, "


def _usage_text(kv: KVManager) -> str:
    """Tokens of each kind that running requests hold, of those the memory could have (cached ones can be evicted)."""
    text = f"#full-token: {kv.full.held} of {kv.full_size}"
    if kv.swa is not None:
        text += f", #swa-token: {kv.swa.held} of {kv.swa_size}"
    return f"{text}, token usage: {kv.arena.held_share:.2f}"
