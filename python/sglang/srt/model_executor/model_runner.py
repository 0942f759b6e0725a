"""ModelRunner: the model, its KV pools and slot tables on one device, and how a StepInput becomes a StepOutput.

It owns every device tensor of a step. It knows rows and slots, not requests; the numbers come from the scheduler.
"""

import logging
import time

import numpy as np
import torch
from torch import Tensor

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.layers.attention.base import AttentionBackend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeBackend
from sglang.srt.layers.logprobs import token_logprobs
from sglang.srt.layers.sampler import SamplingState
from sglang.srt.mem_cache.memory_pool import HybridKVPool, pool_sizes
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.step_io import StepInput, StepOutput, TokenLogprob
from sglang.srt.model_loader.loader import load_model
from sglang.srt.server_args import ResolvedArgs

logger = logging.getLogger(__name__)

LOGPROB_ROWS = 1024  # prompt rows whose logits exist at a time: at 262,144 tokens of vocabulary 1 GB in fp32


class ModelRunner:
    """Loads the model and sizes the KV pools from `args`; `execute` runs steps in the order it is called.

    Raises ValueError when the checkpoint can't be served or memory holds no single request.
    """

    def __init__(self, args: ResolvedArgs, config: ModelConfig):
        self.config = config
        self.device = torch.device(args.device)
        start = time.monotonic()
        free_before = free_memory(self.device)
        self.model = load_model(config, args.load_format, self.device)
        weights = sum(t.numel() * t.element_size() for t in (*self.model.parameters(), *self.model.buffers()))
        logger.info("Weights: %.2f GB loaded in %.1f s", weights / 1e9, time.monotonic() - start)

        budget = int(free_before * args.mem_fraction_static) - weights
        self.full_size, self.swa_size = pool_sizes(
            budget,
            config.kv_layers,
            config.torch_dtype.itemsize,
            config.sliding_window,
            args.max_running_requests,
            args.chunked_prefill_size,
            args.swa_full_tokens_ratio,
            args.context_length,
            args.max_total_tokens,
        )
        self.kv_pool = HybridKVPool(config.kv_layers, self.full_size, self.swa_size, config.torch_dtype, self.device)
        self.kv_bytes = (
            self.full_size * self.kv_pool.full_bytes_per_token + self.swa_size * self.kv_pool.swa_bytes_per_token
        )
        logger.info(
            "KV cache: %d full and %d sliding tokens, %.2f GB", self.full_size, self.swa_size, self.kv_bytes / 1e9
        )
        self.weight_bytes = weights

        rows = args.max_running_requests
        max_len = min(args.context_length, self.full_size)
        self.req_to_token = torch.zeros(rows + 1, max_len, dtype=torch.int32, device=self.device)
        self.req_to_token_swa = torch.zeros(rows + 1, max_len, dtype=torch.int32, device=self.device)
        self.last_tokens = torch.zeros(rows + 1, dtype=torch.int64, device=self.device)  # sampled last, by row
        self.sampling = SamplingState(rows, config.vocab_size, self.device)
        self.attn_backend: AttentionBackend = TorchNativeBackend()

    @torch.inference_mode()
    def execute(self, step: StepInput) -> StepOutput:
        """Run one step: apply its admissions and table writes, forward, sample."""
        self._apply(step)
        batch = self._make_batch(step)
        self.attn_backend.prepare(batch)
        hidden = self.model(batch.input_ids, batch.positions, batch)

        last_rows = batch.extend_start_loc + batch.extend_seq_lens - 1
        output = StepOutput(next_ids=[])
        if len(step.sampled):
            sampled = self._tensor(step.sampled)
            rows = batch.req_pool_indices[sampled]
            logits = self.model.compute_logits(hidden[last_rows[sampled]])
            next_ids, scaled = self.sampling.sample(logits, rows, batch.seq_lens[sampled], step.flags)
            self.last_tokens[rows] = next_ids
            if step.output_logprobs is not None:
                output.output_logprobs = self._output_logprobs(step, scaled, next_ids)
            output.next_ids = next_ids.tolist()
        for wanted in step.prompt_logprobs:
            rows = wanted.token_rows
            entries: list[TokenLogprob] = []
            for start in range(0, len(rows), LOGPROB_ROWS):
                part = self._tensor(rows[start : start + LOGPROB_ROWS])
                ids = self._tensor(wanted.next_ids[start : start + LOGPROB_ROWS])
                logits = self.model.compute_logits(hidden[part])
                entries += make_entries(logits, ids, [wanted.top] * len(part), [wanted.selected] * len(part))
            output.prompt_logprobs.append(entries)
        return output

    def _apply(self, step: StepInput) -> None:
        for write in step.table_writes:
            end = write.start + len(write.full_slots)
            self.req_to_token[write.row, write.start : end] = torch.from_numpy(write.full_slots).to(self.device)
            self.req_to_token_swa[write.row, write.start : end] = torch.from_numpy(write.swa_slots).to(self.device)
        if step.admissions:
            self.sampling.admit(
                [a.row for a in step.admissions],
                [a.params for a in step.admissions],
                [a.seed for a in step.admissions],
                [a.prompt_len for a in step.admissions],
                [a.stop_ids for a in step.admissions],
                [a.output_ids for a in step.admissions],
            )

    def _make_batch(self, step: StepInput) -> ForwardBatch:
        starts = np.cumsum(step.extend_lens) - step.extend_lens
        prefix_lens = step.seq_lens - step.extend_lens
        positions = np.arange(int(step.extend_lens.sum())) + np.repeat(prefix_lens - starts, step.extend_lens)
        rows = self._tensor(step.rows)
        token_rows = self._tensor(np.repeat(step.rows, step.extend_lens))
        positions = self._tensor(positions)
        out_cache_loc = self._tensor(step.out_cache_loc)
        out_cache_loc_swa = self._tensor(step.out_cache_loc_swa)
        self.req_to_token[token_rows, positions] = out_cache_loc.int()
        self.req_to_token_swa[token_rows, positions] = out_cache_loc_swa.int()
        return ForwardBatch(
            input_ids=torch.cat([self._tensor(step.prefill_ids), self.last_tokens[rows[step.num_extends :]]]),
            positions=positions,
            req_pool_indices=rows,
            seq_lens=self._tensor(step.seq_lens),
            extend_seq_lens=self._tensor(step.extend_lens),
            extend_prefix_lens=self._tensor(prefix_lens),
            extend_start_loc=self._tensor(starts),
            out_cache_loc=out_cache_loc,
            out_cache_loc_swa=out_cache_loc_swa,
            req_to_token=self.req_to_token,
            req_to_token_swa=self.req_to_token_swa,
            num_extends=step.num_extends,
            seq_lens_cpu=step.seq_lens.tolist(),
            extend_seq_lens_cpu=step.extend_lens.tolist(),
            kv_pool=self.kv_pool,
            attn_backend=self.attn_backend,
        )

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(self.device, non_blocking=True)

    def _output_logprobs(self, step: StepInput, scaled: Tensor, ids: Tensor) -> list[TokenLogprob | None]:
        wanted = [i for i, request in enumerate(step.output_logprobs) if request is not None]
        rows = torch.tensor(wanted, dtype=torch.int64, device=self.device)
        requests = [step.output_logprobs[i] for i in wanted]
        entries = make_entries(scaled[rows], ids[rows], [top for top, _ in requests], [ids for _, ids in requests])
        result: list[TokenLogprob | None] = [None] * len(step.output_logprobs)
        for i, entry in zip(wanted, entries, strict=True):
            result[i] = entry
        return result


def make_entries(logits: Tensor, ids: Tensor, top: list[int], selected: list[list[int] | None]) -> list[TokenLogprob]:
    """Log-probabilities of `ids` [N] under `logits` [N, V], with the `top` best and the `selected` ids of each row."""
    return [TokenLogprob(*row) for row in zip(*token_logprobs(logits, ids, top, selected), strict=True)]


def free_memory(device: torch.device) -> int:
    """Bytes free on the device before the weights are there."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
