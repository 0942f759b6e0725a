"""Runs a model over paged KV without an engine: ForwardBatches built by hand, slots scattered on purpose.

For model and attention tests. It gives sliding slots back as an engine does (the table then says 0), and writes NaN to
what it frees, so a read of a slot that is no longer the request's shows.
"""

import torch
from torch import Tensor, nn

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.layers.attention.forward_batch import ForwardBatch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeBackend
from sglang.test.separate_kv import SeparateKV


class PagedHarness:
    """A model, its pools (`max_tokens` slots each) and slot tables for `max_requests` requests.

    `drafted` keeps one more sliding slot: a drafter's query has no KV, so its window begins a token earlier than that
    of the next token.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ModelConfig,
        max_requests: int = 8,
        max_tokens: int = 1024,
        device: str = "cpu",
        drafted: bool = False,
    ):
        self.model, self.config, self.device = model, config, torch.device(device)
        self.drafted = drafted
        self.pool = SeparateKV(
            [layer.on_rank(model.tp) for layer in config.kv_layers],
            max_tokens,
            max_tokens,
            config.torch_dtype,
            self.device,
        )
        self.backend = TorchNativeBackend()
        shape = (max_requests, config.context_len)
        self.tables = [torch.zeros(shape, dtype=torch.int32), torch.zeros(shape, dtype=torch.int32)]  # full, sliding
        generator = torch.Generator().manual_seed(0)
        self.free = [(torch.randperm(max_tokens, generator=generator) + 1).tolist() for _ in self.tables]
        self.lengths = [0] * max_requests
        self.last_hidden: dict[int, Tensor] = {}  # by row, that of its last token [H], after the model's last norm

    @torch.no_grad()
    def step(self, rows: dict[int, list[int]], num_extends: int | None = None) -> dict[int, Tensor]:
        """One forward: request row -> its new tokens, prefill chunks first. Returns each row's logits [new tokens, V].

        `num_extends` defaults to the number of leading rows that have more than one new token.
        """
        if num_extends is None:
            num_extends = sum(len(ids) > 1 for ids in rows.values())
        starts = {row: self.lengths[row] for row in rows}
        slots: list[list[int]] = [[], []]
        for row, ids in rows.items():
            self.lengths[row] += len(ids)
            for table, free, taken in zip(self.tables, self.free, slots, strict=True):
                new = [free.pop() for _ in ids]
                table[row, starts[row] : self.lengths[row]] = torch.tensor(new, dtype=torch.int32)
                taken += new
        batch = self._batch(rows, starts, slots, num_extends)
        self.backend.prepare(batch)
        hidden = self.model(batch.input_ids, batch.positions, batch)
        logits = self.model.compute_logits(hidden)
        for row in rows:
            self._slide(row)
        lengths = [len(ids) for ids in rows.values()]
        self.last_hidden.update((row, part[-1]) for row, part in zip(rows, hidden.split(lengths), strict=True))
        return dict(zip(rows, logits.split(lengths), strict=True))

    def drafter_batch(self, rows: list[int]) -> ForwardBatch:
        """Decodes of these requests over the KV they have: a drafter's steps, which write none. Prepared."""
        last = {row: self.lengths[row] - 1 for row in rows}
        batch = self._batch({row: [0] for row in rows}, last, [[0] * len(rows)] * 2, num_extends=0)
        self.backend.prepare(batch)
        return batch

    def _batch(
        self, rows: dict[int, list[int]], starts: dict[int, int], slots: list[list[int]], num_extends: int
    ) -> ForwardBatch:
        def tensor(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=self.device)

        new = [len(ids) for ids in rows.values()]
        seq_lens = [self.lengths[row] for row in rows]
        return ForwardBatch(
            input_ids=tensor([token for ids in rows.values() for token in ids]),
            positions=tensor([p for row in rows for p in range(starts[row], self.lengths[row])]),
            req_pool_indices=tensor(list(rows)),
            seq_lens=tensor(seq_lens),
            extend_seq_lens=tensor(new),
            extend_prefix_lens=tensor(list(starts.values())),
            extend_start_loc=tensor([sum(new[:i]) for i in range(len(new))]),
            out_cache_loc=tensor(slots[0]),
            out_cache_loc_swa=tensor(slots[1]),
            req_to_token=self.tables[0].to(self.device),
            req_to_token_swa=self.tables[1].to(self.device),
            num_extends=num_extends,
            seq_lens_cpu=seq_lens,
            extend_seq_lens_cpu=new,
            kv_pool=self.pool,
            attn_backend=self.backend,
        )

    def _slide(self, row: int) -> None:
        """Give back the sliding slots that no later token of the request sees, and poison them."""
        window = self.config.sliding_window
        if window is None:
            return
        table = self.tables[1]
        dead = table[row, : max(0, self.lengths[row] + 1 - window - self.drafted)]
        slots = dead[dead > 0].tolist()
        dead.zero_()
        for spec in self.config.kv_layers:
            if spec.sliding:
                for buffer in self.pool.get_kv(spec.layer):
                    buffer[slots] = torch.nan
        self.free[1] += slots
