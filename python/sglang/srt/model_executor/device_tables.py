"""DeviceTables: what the device remembers of requests from step to step, a row a request, and a step's ForwardBatch
over it. Row 0 is padding's. It knows rows and slots, not requests."""

import torch
from torch import Tensor

from sglang.srt.layers.attention.forward_batch import AttentionBackend, DraftRows, ForwardBatch
from sglang.srt.layers.attention.kv_pool import KVArena
from sglang.srt.model_executor.step_io import StepInput, TableWrite
from sglang.srt.model_executor.step_layout import LAST_TOKEN, StepTensors, layout, split
from sglang.srt.utils.device_copies import to_device


class DeviceTables:
    """For requests in rows 1 to `rows` of up to `max_len` tokens, whose K and V lie in `kv_pool`.

    `hidden_size` is 0 where nobody asks for hidden states.
    """

    def __init__(
        self,
        rows: int,
        max_len: int,
        kv_pool: KVArena,
        attn_backend: AttentionBackend,
        device: torch.device,
        hidden_size: int,
        dtype: torch.dtype,
    ):
        self.kv_pool, self.attn_backend, self.device = kv_pool, attn_backend, device
        self.max_len = max_len
        # slots by position, full and sliding ones: [rows + 1, max_len]
        self.req_to_token = torch.zeros(rows + 1, max_len, dtype=torch.int32, device=device)
        self.req_to_token_swa = torch.zeros(rows + 1, max_len, dtype=torch.int32, device=device)
        self.last_tokens = torch.zeros(rows + 1, dtype=torch.int64, device=device)  # sampled last
        # after the model's last norm, at the position that produced the newest token: [rows + 1, H]
        self.hidden = torch.zeros(rows + 1, hidden_size, dtype=dtype, device=device)

    def tensor(self, values) -> Tensor:
        """int64, on the device."""
        return to_device(values, torch.int64, self.device)

    def write(self, writes: list[TableWrite]) -> None:
        """Slots that the host has found elsewhere than in a step's new tokens."""
        for write in writes:
            end = write.start + len(write.full_slots)
            for table, slots in ((self.req_to_token, write.full_slots), (self.req_to_token_swa, write.swa_slots)):
                table[write.row, write.start : end] = to_device(slots, torch.int32, self.device)

    def note_slots(self, rows: Tensor, positions: Tensor, full: Tensor, swa: Tensor) -> None:
        """Write new tokens' slots into the tables."""
        self.req_to_token[rows, positions] = full.int()
        self.req_to_token_swa[rows, positions] = swa.int()

    def decode_batch(
        self,
        input_ids: Tensor,
        positions: Tensor,
        rows: Tensor,
        seq_lens: Tensor,
        prefix_lens: Tensor,
        seq_lens_cpu: list[int],
        slots: tuple[Tensor, Tensor],
        drafts: DraftRows | None = None,
    ) -> ForwardBatch:
        """One token a row; `rows` of requests, `prefix_lens` seq_lens - 1, full and sliding `slots`."""
        return self._batch(
            input_ids=input_ids,
            positions=positions,
            req_pool_indices=rows,
            seq_lens=seq_lens,
            extend_seq_lens=torch.ones_like(rows),
            extend_prefix_lens=prefix_lens,
            extend_start_loc=torch.arange(len(seq_lens_cpu), device=self.device),
            out_cache_loc=slots[0],
            out_cache_loc_swa=slots[1],
            num_extends=0,
            seq_lens_cpu=seq_lens_cpu,
            extend_seq_lens_cpu=[1] * len(seq_lens_cpu),
            drafts=drafts,
        )

    def step_batch(self, step: StepInput) -> ForwardBatch:
        """Of a step with prompt chunks, whose numbers go over in one copy; notes its slots."""
        tensors = split(self.tensor(layout(step)), len(step.rows))
        return self.prompt_batch(tensors, step.num_extends, step.seq_lens.tolist(), step.extend_lens.tolist())

    def prompt_batch(
        self, step: StepTensors, num_extends: int, seq_lens_cpu: list[int], extend_seq_lens_cpu: list[int]
    ) -> ForwardBatch:
        """step_batch() of numbers that are on the device already."""
        self.note_slots(step.token_rows, step.positions, step.out_cache_loc, step.out_cache_loc_swa)
        return self._batch(
            input_ids=torch.where(step.ids == LAST_TOKEN, self.last_tokens[step.token_rows], step.ids),
            positions=step.positions,
            req_pool_indices=step.rows,
            seq_lens=step.seq_lens,
            extend_seq_lens=step.extend_lens,
            extend_prefix_lens=step.prefix_lens,
            extend_start_loc=step.starts,
            out_cache_loc=step.out_cache_loc,
            out_cache_loc_swa=step.out_cache_loc_swa,
            num_extends=num_extends,
            seq_lens_cpu=seq_lens_cpu,
            extend_seq_lens_cpu=extend_seq_lens_cpu,
        )

    def _batch(self, **fields) -> ForwardBatch:
        return ForwardBatch(
            **fields,
            req_to_token=self.req_to_token,
            req_to_token_swa=self.req_to_token_swa,
            kv_pool=self.kv_pool,
            attn_backend=self.attn_backend,
        )
