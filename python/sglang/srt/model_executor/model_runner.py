"""ModelRunner: the model, its KV memory and tables on one device, and how a StepInput becomes a LaunchedStep, in two
halves: forward and sample.

It owns every device tensor of a step. It knows rows and slots, not requests; the numbers come from the scheduler.
"""

import logging
import time

import torch
from torch import Tensor

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed.tensor_parallel import SINGLE, TensorParallel
from sglang.srt.layers.attention.backends import check_backend, make_backend
from sglang.srt.layers.attention.forward_batch import AttentionBackend, ForwardBatch
from sglang.srt.layers.attention.host_kv import HostKV, PinError
from sglang.srt.layers.attention.kv_pool import KVArena
from sglang.srt.layers.logprobs import PendingLogprobs, token_logprobs
from sglang.srt.layers.sampler import SamplingState
from sglang.srt.mem_cache.slot_copies import StepCopies
from sglang.srt.model_executor.cuda_graph_runner import CudaGraphRunner, capture_sizes
from sglang.srt.model_executor.device_tables import DeviceTables
from sglang.srt.model_executor.launched_step import Forwarded, LaunchedStep, output_logprobs
from sglang.srt.model_executor.mask_copies import MaskCopies
from sglang.srt.model_executor.memory_plan import free_for_rank, host_shape, kv_shape, weight_bytes
from sglang.srt.model_executor.prefill_graphs import PrefillGraphs, warm_up_sizes
from sglang.srt.model_executor.step_io import Admission, StepInput, TokenMasks
from sglang.srt.model_executor.step_layout import decode_layout, padding_step, split
from sglang.srt.model_loader.loader import load_drafter, load_model
from sglang.srt.ops.invariance.mode import set_enabled
from sglang.srt.ops.products.linear import warm_products
from sglang.srt.resolved_args import ResolvedArgs
from sglang.srt.speculative.frozen_kv_mtp import ForwardedDrafts, FrozenKVMTP
from sglang.srt.utils.device_copies import to_host

logger = logging.getLogger(__name__)

LOGPROB_ROWS = 1024  # prompt rows whose logits exist at a time: at 262,144 tokens of vocabulary 1 GB in fp32


class ModelRunner:
    """Loads the model and sizes KV memory from `args`; `launch` starts steps, which run in that order.

    Raises ValueError when the checkpoint can't be served or memory holds no single request.
    """

    def __init__(self, args: ResolvedArgs, config: ModelConfig, tp: TensorParallel = SINGLE):
        self.config = config
        self.tp = tp
        self.kv_layers = [layer.on_rank(tp) for layer in config.kv_layers]
        self.device = torch.device(args.device)
        check_backend(args.attention_backend, config.kv_layers, config.text.num_heads, config.torch_dtype, self.device)
        set_enabled(args.enable_deterministic_inference)
        start = time.monotonic()
        free_before = free_for_rank(args)
        speculation, decode_tokens = args.speculation, args.decode_tokens
        self.model = load_model(config, args.load_format, self.device, tp)
        modules = [self.model]
        if speculation:
            path = args.speculative_draft_model_path
            modules.append(
                load_drafter(path, config, self.model, args.load_format, config.torch_dtype, self.device, tp)
            )
        weights = weight_bytes(modules)
        logger.info("Weights: %.2f GB loaded in %.1f s", weights / 1e9, time.monotonic() - start)
        if args.enable_deterministic_inference:
            for module in modules:
                warm_products(module.parameters())

        budget = tp.minimum(int(free_before * args.mem_fraction_static) - weights)  # arenas are equal on all ranks
        self.kv_shape = shape = kv_shape(args, config, self.kv_layers, budget)
        self.kv_pool = KVArena(self.kv_layers, shape, config.torch_dtype, self.device)
        logger.info(
            "KV cache: %d full or %d sliding tokens, %.2f GB in %d pages",
            shape.full_size, shape.swa_size, self.kv_pool.nbytes / 1e9, shape.num_pages,
        )  # fmt: skip
        self.host_kv = self._host_kv(args) if args.enable_hierarchical_cache else None
        self.weight_bytes = weights
        self.cpu_threads: int | None = None  # see cpu_threads.py

        rows = args.max_running_requests
        max_len = min(args.context_length + decode_tokens - 1, shape.full_size)
        self.longest = min(max_len, config.context_len)  # tokens that a request may have
        most_rows = rows * (max(decode_tokens, speculation.topk) if speculation else 1)
        backend = self.attention_backend(args.attention_backend, most_rows, max_len)
        hidden_size = config.hidden_size if speculation else 0
        self.tables = DeviceTables(rows, max_len, self.kv_pool, backend, self.device, hidden_size, config.torch_dtype)
        self.sampling = SamplingState(rows, config.vocab_size, self.device, config.never_sampled)
        self.mask_copies = MaskCopies(self.device)
        self.speculation: FrozenKVMTP | None = None
        if speculation:
            target = self.hidden_states, self.model.compute_logits
            self.speculation = FrozenKVMTP(modules[1], speculation, config, self.tables, self.sampling, *target)
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
            self.warm_up(warm_up_sizes(self.prefill_graphs.largest, min(args.step_prompt_tokens, shape.full_size)))

    def _host_kv(self, args: ResolvedArgs) -> HostKV | None:
        """The host tier's memory; None, and a line in the log, where a rank cannot lock it."""
        shape = host_shape(args, self.kv_shape, self.kv_pool.page_bytes, self.config.sliding_window)
        tier, reason = None, "another rank cannot"
        try:
            tier = HostKV(self.kv_pool, self.kv_layers, shape)
        except PinError as e:
            reason = str(e)
        if not self.tp.minimum(tier is not None):
            logger.warning("The host tier is off: its memory cannot be locked (%s)", reason)
            return None
        logger.info(
            "Host tier: %d full or %d sliding tokens, %.2f GB", shape.full_size, shape.swa_size, tier.arena.nbytes / 1e9
        )
        return tier

    def attention_backend(self, name: str, max_batch: int, longest: int) -> AttentionBackend:
        """One for this rank's part of the model, see make_backend."""
        config, num_heads = self.config, self.config.text.num_heads // self.tp.size
        return make_backend(
            name, self.kv_layers, num_heads, max_batch, config.sliding_window, longest, config.torch_dtype, self.device
        )

    @torch.inference_mode()
    def _capture(self, sizes: list[int]) -> CudaGraphRunner[Tensor]:
        padding = [0, 1, 0, 0]  # one token of request row 0, in the padding slots
        return CudaGraphRunner(lambda inputs: self.decode(inputs, [1] * inputs.shape[1]), padding, sizes, self.device)

    @torch.inference_mode()
    def capture_prefills(self, most: int, max_requests: int) -> None:
        """Prefill and mixed steps of up to `most` tokens and `max_requests` requests are then replayed."""
        tile_tokens = self.tables.attn_backend.tile_tokens
        most = min(most, self.kv_shape.full_size)
        self.prefill_graphs = PrefillGraphs(self.prefill, tile_tokens, most, max_requests, self.longest, self.device)

    @torch.inference_mode()
    def warm_up(self, sizes: list[int]) -> None:
        """Run padding steps of these numbers of tokens, so that what they launch is compiled."""
        for tokens in sizes:
            hidden = self.hidden_states(self.tables.step_batch(padding_step(tokens, self.longest)))
            self.model.compute_logits(hidden[-1:])

    def launch(self, step: StepInput) -> LaunchedStep:
        """Start one step: forward, then sample. Does not wait for a GPU."""
        return self.sample(step, self.forward(step))

    @torch.inference_mode()
    def forward(self, step: StepInput) -> Forwarded | ForwardedDrafts:
        """The step's first half: apply its admissions and table writes, run the model. What it returns is valid until
        the next forward, before which sample() must come."""
        if step.copies is not None:
            self.copy(step.copies)
        self.tables.write(step.table_writes)
        self._admit(step.admissions)
        if step.num_extends:
            return self._forward_prompts(step)
        if self.speculation:
            return self.speculation.forward(step)
        inputs, logits = self._run_decode(step)  # every row is a decode, and every decode gets a token
        return Forwarded(inputs[0], inputs[1], logits)

    @torch.inference_mode()
    def copy(self, copies: StepCopies) -> None:
        """Between this device and the host tier; behind the steps so far, and before the next where that needs it."""
        self.host_kv.run(copies)

    @torch.inference_mode()
    def sample(
        self, step: StepInput, forwarded: Forwarded | ForwardedDrafts, masks: TokenMasks | None = None
    ) -> LaunchedStep:
        """The second half: the requests' next tokens, which the next step's rows then start from. `masks`: of rows with
        grammars."""
        bits = None
        if masks is not None and len(masks.places):
            bits = self.mask_copies.put(masks, len(forwarded.logits))
        if isinstance(forwarded, ForwardedDrafts):
            launched = self.speculation.sample(step, forwarded, bits)
        else:
            launched = LaunchedStep(prompt_logprobs=forwarded.prompt_logprobs)
            if forwarded.logits is not None:
                self._sample(step, forwarded, launched, bits)
        if self.device.type == "cuda":
            launched.done = torch.cuda.Event()
            launched.done.record()
        return launched

    def hidden_states(self, batch: ForwardBatch) -> Tensor:
        """The model over a batch: [T, H]."""
        batch.attn_backend.prepare(batch)
        return self.model(batch.input_ids, batch.positions, batch)

    def _admit(self, admissions: list[Admission]) -> None:
        if admissions:
            self.sampling.admit(
                [a.row for a in admissions],
                [a.params for a in admissions],
                [a.seed for a in admissions],
                [a.prompt_len for a in admissions],
                [a.stop_ids for a in admissions],
                [a.output_ids for a in admissions],
            )

    def _forward_prompts(self, step: StepInput) -> Forwarded:
        if self.prefill_graphs and self.prefill_graphs.takes(step):
            batch, hidden = self.prefill_graphs.run(step)
        else:
            batch = self.tables.step_batch(step)
            hidden = self.hidden_states(batch)
        forwarded = Forwarded(prompt_logprobs=self._prompt_logprobs(step, hidden))
        if len(step.sampled):  # not while every chunk is the middle of a prompt
            sampled = self.tables.tensor(step.sampled)
            last_hidden = hidden[(batch.extend_start_loc + batch.extend_seq_lens - 1)[sampled]]
            forwarded.rows, forwarded.lengths = batch.req_pool_indices[sampled], batch.seq_lens[sampled]
            forwarded.logits = self.model.compute_logits(last_hidden)
            if self.speculation:
                self.tables.hidden[forwarded.rows] = last_hidden
        return forwarded

    def _run_decode(self, step: StepInput) -> tuple[Tensor, Tensor]:
        """decode_layout's numbers on the device, and logits [B, V]."""
        inputs = decode_layout(step)
        if self.graphs and self.graphs.takes(len(step.rows)):
            inputs, logits = self.graphs.run(inputs)
            return inputs, logits[: len(step.rows)]
        inputs = self.tables.tensor(inputs)
        return inputs, self.decode(inputs, step.seq_lens.tolist())

    def decode(self, inputs: Tensor, seq_lens_cpu: list[int]) -> Tensor:
        """One token for each request of `inputs` (see decode_layout): logits [B, V]. The part that graphs capture."""
        rows, seq_lens, out_cache_loc, out_cache_loc_swa = inputs.unbind()
        positions, tables = seq_lens - 1, self.tables
        tables.note_slots(rows, positions, out_cache_loc, out_cache_loc_swa)
        ids, slots = tables.last_tokens[rows], (out_cache_loc, out_cache_loc_swa)
        batch = tables.decode_batch(ids, positions, rows, seq_lens, positions, seq_lens_cpu, slots)
        return self.model.compute_logits(self.hidden_states(batch))

    def prefill(self, numbers: Tensor, work: list[Tensor], requests: int) -> tuple[ForwardBatch, Tensor]:
        """A step of prompts and its hidden states, see PrefillGraphs. The part that graphs capture."""
        batch = self.tables.prompt_batch(split(numbers, requests), requests, [], [])
        batch.attn_backend.prepare_prompts(work, len(batch.input_ids))
        return batch, self.model(batch.input_ids, batch.positions, batch)

    def _sample(
        self, step: StepInput, forwarded: Forwarded, launched: LaunchedStep, masks: tuple[Tensor, Tensor] | None
    ) -> None:
        rows, lengths = forwarded.rows, forwarded.lengths
        next_ids, scaled = self.sampling.sample(forwarded.logits, rows, lengths, step.flags, masks)
        self.tables.last_tokens[forwarded.rows] = next_ids
        launched.next_ids = to_host(next_ids)
        if step.output_logprobs is not None:
            places = torch.arange(len(next_ids), device=self.device)[:, None]
            launched.output_logprobs = output_logprobs(step, scaled, places, next_ids[:, None])

    def _prompt_logprobs(self, step: StepInput, hidden: Tensor) -> list[list[PendingLogprobs]]:
        wanted_parts = []
        for wanted in step.prompt_logprobs:
            parts = []
            for start in range(0, len(wanted.token_rows), LOGPROB_ROWS):
                rows = self.tables.tensor(wanted.token_rows[start : start + LOGPROB_ROWS])
                ids = self.tables.tensor(wanted.next_ids[start : start + LOGPROB_ROWS])
                logits = self.model.compute_logits(hidden[rows])
                parts.append(token_logprobs(logits, ids, [wanted.top] * len(rows), [wanted.selected] * len(rows)))
            wanted_parts.append(parts)
        return wanted_parts
