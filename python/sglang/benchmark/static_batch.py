"""StaticBatch: requests that start together and decode in step, through the same steps as served ones.

For measuring: it plans by hand what a scheduler would decide, and leaves slots, steps and sampling to the parts that
serve. Prompts go in chunks of the server's --chunked-prefill-size, without decodes among them unless asked for.
"""

from collections.abc import Iterator

import numpy as np

from sglang.srt.managers.io_struct import TokenizedGenerateReq
from sglang.srt.managers.kv_manager import KVManager
from sglang.srt.managers.schedule_batch import Chunk, Req, StepPlan
from sglang.srt.managers.step_builder import build_step
from sglang.srt.model_executor.step_io import StepInput, TableWrite
from sglang.srt.sampling.sampling_params import SamplingParams


class StaticBatch:
    """`prompts` start from what the prefix cache has of them. Use it as a context: its slots go back at the end.

    `chunk_size` in tokens, -1 for whole prompts. `top_logprobs`: how many come with each token; None for none at all.
    """

    def __init__(self, kv: KVManager, prompts: list[np.ndarray], chunk_size: int, top_logprobs: int | None = None):
        self._kv = kv
        self._chunk_size = chunk_size
        self._writes: list[TableWrite] = []  # for the next step
        params = SamplingParams.from_request({"temperature": 0, "ignore_eos": True})
        logprobs = {"return_logprob": top_logprobs is not None, "top_logprobs_num": top_logprobs or 0}
        self.reqs = []
        for i, prompt in enumerate(prompts):
            msg = TokenizedGenerateReq(str(i), list(map(int, prompt)), params, **logprobs)
            self.reqs.append(Req(msg, frozenset(), seed=i, order=i, max_len=kv.max_len))

    def __enter__(self) -> "StaticBatch":
        return self

    def __exit__(self, *_: object) -> None:
        for req in self.reqs:
            if req.row >= 0:
                self._kv.release(req)

    def prefill_steps(self, beside: "StaticBatch | None" = None) -> Iterator[StepInput]:
        """The steps that compute the prompts; those that end one sample its first token. With `beside` each also
        decodes a token for each request of that batch, whose tokens come last. Raises ValueError when the KV pools are
        too small."""
        waiting, decodes = list(self.reqs), [] if beside is None else beside.reqs
        while waiting:
            plan = StepPlan(decodes=decodes)
            if beside is not None:
                self._kv.trim(decodes)
                self._writes, beside._writes = self._writes + beside._writes, []
            budget = self._chunk_size if self._chunk_size > 0 else sum(len(req.prompt) for req in waiting)
            self._kv.trim([req for req in self.reqs if req.row >= 0])
            for req in waiting:
                if budget <= 0:
                    break
                match = None
                if req.row < 0:
                    match = self._kv.match(req)
                    self._kv.cache.lock(match.node)
                done = req.computed if match is None else match.length
                tokens = min(len(req.prompt) - done, budget)
                budget -= tokens
                plan.chunks.append(Chunk(req, tokens, match))
            tokens = sum(chunk.tokens for chunk in plan.chunks)
            yield self._step(plan, tokens + len(decodes) * self._kv.decode_tokens)
            waiting = [req for req in waiting if req.is_prefilling or req.row < 0]

    def decode_step(self) -> StepInput:
        """One more token for each request; with speculation a draft, and keep() must follow. Raises ValueError when the
        KV pools are too small."""
        self._kv.trim(self.reqs)
        return self._step(StepPlan(decodes=self.reqs), len(self.reqs) * self._kv.decode_tokens)

    def keep(self, kept: list[list[int]] | None) -> None:
        """What a decode step's output says of its slots (StepOutput.kept)."""
        if kept is not None:
            writes = [self._kv.keep(req, places) for req, places in zip(self.reqs, kept, strict=True)]
            self._writes += [write for write in writes if write is not None]

    def _step(self, plan: StepPlan, tokens: int) -> StepInput:
        new_rows = sum(chunk.match is not None for chunk in plan.chunks)
        if not self._kv.room().fits(tokens, tokens) or new_rows > len(self._kv.free_rows):
            for chunk in plan.chunks:
                if chunk.match is not None:
                    self._kv.cache.unlock(chunk.match.node)
            raise ValueError(
                f"a batch of {len(self.reqs)} requests does not fit KV memory: a step of {tokens} tokens finds "
                f"{self._kv.room().most(tokens)} free slots and {len(self._kv.free_rows)} free rows "
                f"({self._kv.usage()}); raise "
                f"--max-total-tokens (on a GPU --mem-fraction-static), or take fewer or shorter requests"
            )
        step, sampled, _ = build_step(plan, self._kv)
        for req in sampled:
            req.pending = 0  # nobody waits for its host copy
        step.table_writes[:0] = self._writes
        shared = [self._kv.share_prompt(c.req) for c in plan.chunks]
        self._writes = [write for write in shared if write is not None]
        return step
