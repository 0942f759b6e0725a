"""ModelRunner: the model, its KV pools and slot tables on one device, and how a StepInput becomes a LaunchedStep.

It owns every device tensor of a step. It knows rows and slots, not requests; the numbers come from the scheduler.
"""

import logging
import time

import torch
from torch import Tensor

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed.tensor_parallel import SINGLE, TensorParallel
from sglang.srt.layers.attention.base import AttentionBackend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeBackend
from sglang.srt.layers.attention.torch_native_tiles import TorchNativeTilesBackend
from sglang.srt.layers.logprobs import token_logprobs
from sglang.srt.layers.sampler import SamplingState
from sglang.srt.mem_cache.memory_pool import HybridKVPool, pool_sizes
from sglang.srt.model_executor.cuda_graph_runner import CudaGraphRunner, capture_sizes
from sglang.srt.model_executor.forward_batch_info import DraftRows, ForwardBatch
from sglang.srt.model_executor.launched_step import LaunchedStep
from sglang.srt.model_executor.prefill_graphs import PrefillGraphs, warm_up_sizes
from sglang.srt.model_executor.step_io import StepInput
from sglang.srt.model_executor.step_layout import LAST_TOKEN, StepTensors, decode_layout, layout, nobodys_step, split
from sglang.srt.model_loader.loader import load_drafter, load_model
from sglang.srt.ops.invariance.mode import set_enabled
from sglang.srt.ops.products.linear import prepare
from sglang.srt.resolved_args import ResolvedArgs
from sglang.srt.speculative.frozen_kv_mtp import FrozenKVMTP
from sglang.srt.utils.device_copies import to_device, to_host
from sglang.srt.utils.device_memory import free_memory

logger = logging.getLogger(__name__)

LOGPROB_ROWS = 1024  # prompt rows whose logits exist at a time: at 262,144 tokens of vocabulary 1 GB in fp32


class ModelRunner:
    """Loads the model and sizes the KV pools from `args`; `launch` starts steps, which run in that order.

    Raises ValueError when the checkpoint can't be served or memory holds no single request.
    """

    def __init__(self, args: ResolvedArgs, config: ModelConfig, tp: TensorParallel = SINGLE):
        self.config = config
        self.tp = tp
        self.kv_layers = [layer.on_rank(tp) for layer in config.kv_layers]
        self.device = torch.device(args.device)
        _check_attention(args.attention_backend, config, self.device)
        set_enabled(args.enable_deterministic_inference)
        start = time.monotonic()
        free_before = free_memory(self.device)
        if self.device.type == "cpu":
            free_before //= tp.size  # they share it
        speculation, decode_tokens = args.speculation, args.decode_tokens
        self.model = load_model(config, args.load_format, self.device, tp)
        modules = [self.model]
        if speculation:
            path = args.speculative_draft_model_path
            modules.append(
                load_drafter(path, config, self.model, args.load_format, config.torch_dtype, self.device, tp)
            )
        weights = sum(t.numel() * t.element_size() for m in modules for t in (*m.parameters(), *m.buffers()))
        logger.info("Weights: %.2f GB loaded in %.1f s", weights / 1e9, time.monotonic() - start)
        if args.enable_deterministic_inference:
            for module in modules:
                prepare(module.parameters())

        budget = tp.minimum(int(free_before * args.mem_fraction_static) - weights)  # pools are equal on all ranks
        self.full_size, self.swa_size = pool_sizes(
            budget,
            self.kv_layers,
            config.torch_dtype.itemsize,
            config.sliding_window,
            args.max_running_requests,
            args.chunked_prefill_size,
            args.swa_full_tokens_ratio,
            args.context_length,
            args.max_total_tokens,
            decode_tokens,
        )
        self.kv_pool = HybridKVPool(self.kv_layers, self.full_size, self.swa_size, config.torch_dtype, self.device)
        self.kv_bytes = (
            self.full_size * self.kv_pool.full_bytes_per_token + self.swa_size * self.kv_pool.swa_bytes_per_token
        )
        logger.info(
            "KV cache: %d full and %d sliding tokens, %.2f GB", self.full_size, self.swa_size, self.kv_bytes / 1e9
        )
        self.weight_bytes = weights

        rows = args.max_running_requests
        max_len = min(args.context_length + decode_tokens - 1, self.full_size)
        self.req_to_token = torch.zeros(rows + 1, max_len, dtype=torch.int32, device=self.device)
        self.req_to_token_swa = torch.zeros(rows + 1, max_len, dtype=torch.int32, device=self.device)
        self.last_tokens = torch.zeros(rows + 1, dtype=torch.int64, device=self.device)  # sampled last, by row
        self.sampling = SamplingState(rows, config.vocab_size, self.device)
        most_rows = rows * (max(decode_tokens, speculation.topk) if speculation else 1)
        self.attn_backend = self._attention_backend(args, most_rows)
        self.speculation = FrozenKVMTP(self, modules[1], speculation) if speculation else None
        self.graphs: CudaGraphRunner[Tensor] | None = None
        if not args.disable_cuda_graph:
            sizes = capture_sizes(args.cuda_graph_max_bs)
            if self.speculation:
                self.speculation.capture(sizes)
            else:
                self.graphs = self._capture(sizes)
        self.prefill_graphs: PrefillGraphs | None = None
        if args.piecewise_cuda_graph_max_tokens is not None:
            self.capture_prefills(args.piecewise_cuda_graph_max_tokens, rows)
            self.warm_up(warm_up_sizes(self.prefill_graphs.largest, min(args.step_prompt_tokens, self.full_size)))

    def _attention_backend(self, args: ResolvedArgs, max_batch: int) -> AttentionBackend:
        if args.attention_backend == "torch_native":
            if args.enable_deterministic_inference:
                return TorchNativeTilesBackend({spec.head_dim for spec in self.kv_layers})
            return TorchNativeBackend()
        from sglang.srt.layers.attention.triton_backend import TritonBackend

        config, num_heads = self.config, self.config.text.num_heads // self.tp.size
        longest = self.req_to_token.shape[1]
        return TritonBackend(
            self.kv_layers, num_heads, max_batch, config.sliding_window, longest, config.torch_dtype, self.device
        )

    @torch.inference_mode()
    def _capture(self, sizes: list[int]) -> CudaGraphRunner[Tensor]:
        padding = [0, 1, 0, 0]  # one token of request row 0, in the padding slots
        return CudaGraphRunner(lambda inputs: self.decode(inputs, [1] * inputs.shape[1]), padding, sizes, self.device)

    @property
    def longest(self) -> int:
        """Tokens that a request may have."""
        return min(self.req_to_token.shape[1], self.config.context_len)

    @torch.inference_mode()
    def capture_prefills(self, most: int, max_requests: int) -> None:
        """Prefill and mixed steps of up to `most` tokens and `max_requests` requests are then replayed."""
        tile_tokens = self.attn_backend.tile_tokens
        most = min(most, self.full_size)
        self.prefill_graphs = PrefillGraphs(self.prefill, tile_tokens, most, max_requests, self.longest, self.device)

    @torch.inference_mode()
    def warm_up(self, sizes: list[int]) -> None:
        """Run nobody's prefill steps of these numbers of tokens, so that what they launch is compiled."""
        for tokens in sizes:
            hidden = self.forward(self._step_batch(nobodys_step(tokens, self.longest)))
            self.model.compute_logits(hidden[-1:])

    @torch.inference_mode()
    def launch(self, step: StepInput) -> LaunchedStep:
        """Start one step: apply its admissions and table writes, forward, sample. Does not wait for a GPU."""
        self._apply(step)
        launched = LaunchedStep()
        if step.num_extends:
            if self.prefill_graphs and self.prefill_graphs.takes(step):
                batch, hidden = self.prefill_graphs.run(step)
            else:
                batch = self._step_batch(step)
                hidden = self.forward(batch)
            if len(step.sampled):  # not while every chunk is the middle of a prompt
                sampled = self.tensor(step.sampled)
                last_tokens = (batch.extend_start_loc + batch.extend_seq_lens - 1)[sampled]
                rows, last_hidden = batch.req_pool_indices[sampled], hidden[last_tokens]
                self._sample(step, self.model.compute_logits(last_hidden), rows, batch.seq_lens[sampled], launched)
                if self.speculation:
                    self.speculation.note_hidden(rows, last_hidden)
            self._prompt_logprobs(step, hidden, launched)
        elif self.speculation:
            self.speculation.run(step, launched)
        else:  # every row is a decode, and every decode gets a token
            inputs, logits = self._run_decode(step)
            self._sample(step, logits, inputs[0], inputs[1], launched)
        if self.device.type == "cuda":
            launched.done = torch.cuda.Event()
            launched.done.record()
        return launched

    def forward(self, batch: ForwardBatch) -> Tensor:
        self.attn_backend.prepare(batch)
        return self.model(batch.input_ids, batch.positions, batch)

    def _run_decode(self, step: StepInput) -> tuple[Tensor, Tensor]:
        """decode_layout's numbers on the device, and logits [B, V]."""
        inputs = decode_layout(step)
        if self.graphs and self.graphs.takes(len(step.rows)):
            inputs, logits = self.graphs.run(inputs)
            return inputs, logits[: len(step.rows)]
        inputs = self.tensor(inputs)
        return inputs, self.decode(inputs, step.seq_lens.tolist())

    def decode(self, inputs: Tensor, seq_lens_cpu: list[int]) -> Tensor:
        """One token for each request of `inputs` (see decode_layout): logits [B, V]. The part that graphs capture."""
        rows, seq_lens, out_cache_loc, out_cache_loc_swa = inputs.unbind()
        positions = seq_lens - 1
        self.note_slots(rows, positions, out_cache_loc, out_cache_loc_swa)
        ids, slots = self.last_tokens[rows], (out_cache_loc, out_cache_loc_swa)
        batch = self.decode_batch(ids, positions, rows, seq_lens, positions, seq_lens_cpu, slots)
        return self.model.compute_logits(self.forward(batch))

    def _sample(self, step: StepInput, logits: Tensor, rows: Tensor, lengths: Tensor, launched: LaunchedStep) -> None:
        next_ids, scaled = self.sampling.sample(logits, rows, lengths, step.flags)
        self.last_tokens[rows] = next_ids
        launched.next_ids = to_host(next_ids)
        if step.output_logprobs is not None:
            places = torch.arange(len(next_ids), device=self.device)[:, None]
            self.output_logprobs(step, scaled, places, next_ids[:, None], launched)

    def output_logprobs(
        self, step: StepInput, scaled: Tensor, places: Tensor, ids: Tensor, launched: LaunchedStep
    ) -> None:
        """Start those of the requests that asked: of `ids` [S, W], by rows `places` [S, W] of `scaled` [rows, V]."""
        asked = [i for i, request in enumerate(step.output_logprobs) if request is not None]
        index, width = self.tensor(asked), ids.shape[1]
        top, selected = zip(*(step.output_logprobs[i] for i in asked for _ in range(width)), strict=True)
        pending = token_logprobs(scaled[places[index].flatten()], ids[index].flatten(), list(top), list(selected))
        launched.output_logprobs = asked, pending

    def _prompt_logprobs(self, step: StepInput, hidden: Tensor, launched: LaunchedStep) -> None:
        for wanted in step.prompt_logprobs:
            parts = []
            for start in range(0, len(wanted.token_rows), LOGPROB_ROWS):
                rows = self.tensor(wanted.token_rows[start : start + LOGPROB_ROWS])
                ids = self.tensor(wanted.next_ids[start : start + LOGPROB_ROWS])
                logits = self.model.compute_logits(hidden[rows])
                parts.append(token_logprobs(logits, ids, [wanted.top] * len(rows), [wanted.selected] * len(rows)))
            launched.prompt_logprobs.append(parts)

    def _apply(self, step: StepInput) -> None:
        for write in step.table_writes:
            end = write.start + len(write.full_slots)
            for table, slots in ((self.req_to_token, write.full_slots), (self.req_to_token_swa, write.swa_slots)):
                table[write.row, write.start : end] = to_device(slots, torch.int32, self.device)
        if step.admissions:
            self.sampling.admit(
                [a.row for a in step.admissions],
                [a.params for a in step.admissions],
                [a.seed for a in step.admissions],
                [a.prompt_len for a in step.admissions],
                [a.stop_ids for a in step.admissions],
                [a.output_ids for a in step.admissions],
            )

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
        """One token a row; `rows` of requests, `prefix_lens` seq_lens - 1, `slots` in the full and the sliding pool."""
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

    def _batch(self, **fields) -> ForwardBatch:
        """A ForwardBatch over this runner's tables and pools."""
        return ForwardBatch(
            **fields,
            req_to_token=self.req_to_token,
            req_to_token_swa=self.req_to_token_swa,
            kv_pool=self.kv_pool,
            attn_backend=self.attn_backend,
        )

    def _step_batch(self, step: StepInput) -> ForwardBatch:
        """The device tensors of a step with prompt chunks, in one copy."""
        tensors = split(self.tensor(layout(step)), len(step.rows))
        return self._prompt_batch(tensors, step.num_extends, step.seq_lens.tolist(), step.extend_lens.tolist())

    def prefill(self, numbers: Tensor, work: list[Tensor], requests: int) -> tuple[ForwardBatch, Tensor]:
        """A step of prompts and its hidden states, see PrefillGraphs. The part that graphs capture."""
        batch = self._prompt_batch(split(numbers, requests), requests, [], [])
        self.attn_backend.prepare_prompts(work, len(batch.input_ids))
        return batch, self.model(batch.input_ids, batch.positions, batch)

    def _prompt_batch(
        self, step: StepTensors, num_extends: int, seq_lens_cpu: list[int], extend_seq_lens_cpu: list[int]
    ) -> ForwardBatch:
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

    def tensor(self, values) -> Tensor:
        return to_device(values, torch.int64, self.device)


def _check_attention(backend: str, config: ModelConfig, device: torch.device) -> None:
    """ValueError with every reason why the backend can't serve the model here, before anything is loaded."""
    if backend != "triton":
        return
    from sglang.srt.layers.attention.triton_backend import TritonBackend

    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if reasons := TritonBackend.check(config.kv_layers, config.text.num_heads, config.torch_dtype, capability):
        raise ValueError(f"--attention-backend triton can't serve this model here: {'; '.join(reasons)}")
