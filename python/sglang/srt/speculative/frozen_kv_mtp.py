"""FrozenKVMTP: decode rounds in which a small drafter guesses and the target verifies (Gemma 4's MTP).

The drafter has queries only: it reads the target's K and V of the tokens before the draft, which stay as they are
("frozen"), and goes on from the target's last hidden state. A round is `num_steps` drafter forwards, one target forward
over all drafted tokens, and the choice of what is accepted; on the device nothing waits for the host in between.

A round has a step's two halves: forward() drafts and lets the target see the drafts, sample() accepts.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.layers.attention.forward_batch import DraftRows, ForwardBatch
from sglang.srt.layers.sampler import SamplingState
from sglang.srt.model_executor.cuda_graph_runner import CudaGraphRunner
from sglang.srt.model_executor.device_tables import DeviceTables
from sglang.srt.model_executor.launched_step import LaunchedStep, output_logprobs
from sglang.srt.model_executor.step_io import DraftTokens, StepInput
from sglang.srt.sampling.sampling_flags import SamplingFlags
from sglang.srt.speculative.draft_tree import Draft, TreeBuilder, accept, make_line
from sglang.srt.speculative.settings import SpeculationSettings
from sglang.srt.utils.device_copies import to_host


class Drafter(Protocol):
    """What a drafter model offers, see models/gemma4_mtp.py."""

    def __call__(
        self, input_ids: Tensor, prev: Tensor, positions: Tensor, batch: ForwardBatch
    ) -> tuple[Tensor, Tensor]:
        """[N], [N, H], [N] -> the drafter's hidden [N, d] and the next `prev` [N, H]."""
        ...

    def candidates(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """[N, d] -> logits [N, C] and each column's token id [N, C], None where they are 0..C-1."""
        ...


# What drafts know of a request's sampling. The rest (cuts, penalties, bias) would make other graphs for little: it only
# lets the drafter guess a token that the target then does not take.
DRAFT_FLAGS = SamplingFlags.DRAW | SamplingFlags.TEMPERATURE


class Round(NamedTuple):
    """What the device makes of a round before anything is accepted."""

    draft: Draft  # of B requests
    hidden: Tensor  # [B * nodes, H], the target's at every node
    logits: Tensor  # [B * nodes, V]

    def cut(self, requests: int) -> "Round":
        """The first `requests`, without padding."""
        nodes = self.draft.tokens.shape[1]
        return Round(self.draft.cut(requests), self.hidden[: requests * nodes], self.logits[: requests * nodes])


class ForwardedDrafts(NamedTuple):
    """A step's first half: see launched_step.Forwarded."""

    rows: Tensor  # [B], of the requests
    before: Tensor  # [B], tokens with KV
    round: Round
    host_tokens: Tensor | None = None  # of the draft, for a host that makes masks, there once `drafted` has passed
    host_parents: Tensor | None = None
    drafted: torch.cuda.Event | None = None

    @property
    def logits(self) -> Tensor:
        return self.round.logits

    def drafts(self) -> DraftTokens:
        """Waits for the round."""
        if self.drafted is not None:
            self.drafted.synchronize()
        tokens = self.host_tokens.numpy()
        if self.host_parents is None:  # a line
            parents = np.maximum(np.arange(tokens.shape[1]) - 1, 0)
            return DraftTokens(tokens, np.broadcast_to(parents, tokens.shape))
        return DraftTokens(tokens, self.host_parents.numpy())


class FrozenKVMTP:
    """Decode steps of a target: `hidden_states(batch)` are its own [T, H], `compute_logits` makes logits [T, V] of
    them. Tables and sampling state are the target's."""

    def __init__(
        self,
        drafter: Drafter,
        settings: SpeculationSettings,
        config: ModelConfig,
        tables: DeviceTables,
        sampling: SamplingState,
        hidden_states: Callable[[ForwardBatch], Tensor],
        compute_logits: Callable[[Tensor], Tensor],
    ):
        self.drafter, self.settings, self.config = drafter, settings, config
        self.tables, self.sampling = tables, sampling
        self.hidden_states, self.compute_logits = hidden_states, compute_logits
        self.graphs: dict[SamplingFlags, CudaGraphRunner[Round]] = {}

    @torch.inference_mode()
    def capture(self, sizes: list[int]) -> None:
        """Make CUDA graphs of rounds, for greedy batches and for others."""
        nodes = self.settings.num_draft_tokens
        padding = [0, 1] + [0] * (2 * nodes)  # request row 0 with one token, padding slots
        for flags in (SamplingFlags(0), DRAFT_FLAGS):
            self.graphs[flags] = CudaGraphRunner(
                lambda inputs, flags=flags: self.make_round(inputs, [1] * inputs.shape[1], flags),
                padding, sizes, self.tables.device,
            )  # fmt: skip

    def forward(self, step: StepInput) -> ForwardedDrafts:
        """Drafts of every request of the step, and what the target makes of them."""
        nodes, count = self.settings.num_draft_tokens, len(step.rows)
        before = step.seq_lens - nodes  # tokens with KV
        slots = (step.out_cache_loc.reshape(count, nodes).T, step.out_cache_loc_swa.reshape(count, nodes).T)
        inputs = np.concatenate([step.rows[None], before[None], *slots])
        draft_flags = DRAFT_FLAGS if step.flags & SamplingFlags.DRAW else SamplingFlags(0)
        if draft_flags in self.graphs and self.graphs[draft_flags].takes(count):
            inputs, made = self.graphs[draft_flags].run(inputs)
            made = made.cut(count)
        else:
            inputs = self.tables.tensor(inputs)
            made = self.make_round(inputs, before.tolist(), draft_flags)
        forwarded = ForwardedDrafts(inputs[0], inputs[1], made)
        return self._for_masks(forwarded) if step.flags & SamplingFlags.MASK else forwarded

    def _for_masks(self, forwarded: ForwardedDrafts) -> ForwardedDrafts:
        """With the drafts on their way to the host."""
        draft, drafted = forwarded.round.draft, None
        tokens, parents = to_host(draft.tokens), None if draft.parents is None else to_host(draft.parents)
        if tokens.device != draft.tokens.device:
            drafted = torch.cuda.Event()
            drafted.record()
        return forwarded._replace(host_tokens=tokens, host_parents=parents, drafted=drafted)

    def make_round(self, inputs: Tensor, before_cpu: list[int], flags: SamplingFlags) -> Round:
        """inputs [2 + 2 * nodes, B]: request rows, tokens with KV, then new full and sliding slots.
        `before_cpu`: the tokens with KV, for backends that plan on the host. The part that graphs capture."""
        nodes = self.settings.num_draft_tokens
        rows, before = inputs[0], inputs[1]
        full, swa = (slots.T.flatten() for slots in inputs[2:].split(nodes))
        draft = self.make_draft(rows, before, before_cpu, flags)
        return self._verify(draft, rows, before, full, swa, before_cpu)

    def sample(self, step: StepInput, forwarded: ForwardedDrafts, masks: tuple[Tensor, Tensor] | None) -> LaunchedStep:
        """Sample at every node, find the accepted ones, and leave the requests as the next round wants to find them.
        `masks`: see SamplingState.sample; a node's tokens are barred by what its path allows."""
        rows, before, made = forwarded.rows, forwarded.before, forwarded.round
        draft, nodes = made.draft, self.settings.num_draft_tokens
        sampling, flags = self.sampling, step.flags
        path = draft.path_tokens().flatten(0, 1) if flags & SamplingFlags.PENALTY else None
        node_rows, lengths = rows.repeat_interleave(nodes), draft.lengths(before)
        targets, scaled = sampling.choose(made.logits, node_rows, lengths, flags, path, masks)
        targets = targets.view(-1, nodes)
        accepted, counts = accept(draft, targets)
        next_ids = targets.gather(1, accepted)

        last = counts[:, None] - 1
        self.tables.last_tokens[rows] = next_ids.gather(1, last)[:, 0]
        self.tables.hidden[rows] = made.hidden.view(len(rows), nodes, -1)[
            torch.arange(len(rows), device=rows.device), accepted.gather(1, last)[:, 0]
        ]
        width = next_ids.shape[1]
        real = torch.arange(width, device=rows.device) < counts[:, None]
        sampling.count(rows.repeat_interleave(width), next_ids.flatten(), flags, real.flatten())
        launched = LaunchedStep(to_host(next_ids), counts=to_host(counts), kept=to_host(accepted))
        if step.output_logprobs is not None:  # of every token that may have been accepted
            places = accepted + nodes * torch.arange(len(rows), device=rows.device)[:, None]
            launched.output_logprobs = output_logprobs(step, scaled, places, next_ids)
        return launched

    def make_draft(self, rows: Tensor, before: Tensor, before_cpu: list[int], flags: SamplingFlags) -> Draft:
        """What the requests would sample if the drafter were right. Drafts share the target's noise, so a drawn token
        is guessed as well as a greedy one."""
        newest, prev = self.tables.last_tokens[rows], self.tables.hidden[rows]
        topk, steps, sampling = self.settings.topk, self.settings.num_steps, self.sampling
        batch = self._draft_batch(rows, before, before_cpu)
        if topk == 1:
            drafted = [newest]
            for step in range(steps):
                request, prev = self._drafter_step(drafted[-1], prev, batch, step)
                drafted.append(sampling.choose(*request, flags)[0])
            return make_line(newest, drafted[1:])
        builder = TreeBuilder(newest, topk)
        request, prev = self._drafter_step(newest, prev, batch, 0)
        tokens, origin = builder.grow(sampling.preferences(*request, flags)[:, None])
        wide = self._draft_batch(
            rows.repeat_interleave(topk), before.repeat_interleave(topk), [n for n in before_cpu for _ in range(topk)]
        )
        prev = prev[:, None]  # [B, beams, H]
        for step in range(1, steps):
            prev = prev.gather(1, origin[:, :, None].expand(-1, -1, prev.shape[2]))
            request, prev = self._drafter_step(tokens.flatten(), prev.flatten(0, 1), wide, step)
            prev = prev.unflatten(0, (-1, topk))
            tokens, origin = builder.grow(sampling.preferences(*request, flags).unflatten(0, (-1, topk)))
        return builder.finish(self.settings.num_draft_tokens)

    def _drafter_step(
        self, ids: Tensor, prev: Tensor, batch: ForwardBatch, step: int
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """One token further: the drafter's logits [N, V] with the request rows and indices of the tokens to sample, as
        SamplingState takes them, and the drafter's state."""
        hidden, prev = self.drafter(ids, prev, batch.positions, batch)
        logits, columns = self.drafter.candidates(hidden)
        if columns is not None:  # the other tokens are out of the question
            all_tokens = logits.new_full((len(logits), self.config.vocab_size), -torch.inf)
            logits = all_tokens.scatter_(1, columns, logits)
        return (logits, batch.req_pool_indices, batch.seq_lens + 1 + step), prev

    def _draft_batch(self, rows: Tensor, before: Tensor, before_cpu: list[int]) -> ForwardBatch:
        """Decode rows that see the tokens with KV and write nothing."""
        positions = self._positions(before + self.settings.position_offset)
        # ids and slots are unused: the drafter gets its tokens step by step
        batch = self.tables.decode_batch(rows, positions, rows, before, before - 1, before_cpu, (rows, rows))
        batch.attn_backend.prepare(batch)
        return batch

    def _verify(
        self, draft: Draft, rows: Tensor, before: Tensor, full: Tensor, swa: Tensor, before_cpu: list[int]
    ) -> Round:
        """The target over all nodes."""
        tables, nodes = self.tables, self.settings.num_draft_tokens
        node_rows = rows.repeat_interleave(nodes)
        places = (before[:, None] + torch.arange(nodes, device=rows.device)).flatten()
        tables.note_slots(node_rows, places, full, swa)
        lengths, bounds = draft.lengths(before), [n + nodes for n in before_cpu for _ in range(nodes)]
        prefix, drafts = lengths - 1, DraftRows(nodes, draft.paths)
        batch = tables.decode_batch(
            draft.tokens.flatten(), self._positions(prefix), node_rows, lengths, prefix, bounds, (full, swa), drafts
        )
        hidden = self.hidden_states(batch)
        return Round(draft, hidden, self.compute_logits(hidden))

    def _positions(self, positions: Tensor) -> Tensor:
        """Drafts may go past the context's end, where no token is accepted; RoPE knows no such place."""
        return positions.clamp(0, self.config.context_len - 1)
