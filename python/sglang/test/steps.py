"""Steps that tests make by hand, the attention backend they may run on, and what they leave behind."""

import numpy as np
from torch import Tensor

from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.model_executor.step_io import StepInput
from sglang.srt.sampling.sampling_flags import SamplingFlags
from sglang.test.engine_harness import LoadedModel


def step_of(rows, seq_lens, extend_lens, num_extends, ids, slots) -> StepInput:
    """Every request gets a token. Slots are counted from the first behind the padding, where there are at most 100 of
    them; sliding slots are in memory of other full ones."""
    arrays = (np.array(a, dtype=np.int64) for a in (rows, seq_lens, extend_lens))
    slots = 100 + np.array(slots, dtype=np.int64)
    sampled = np.arange(len(rows))
    return StepInput(*arrays, num_extends, np.array(ids, dtype=np.int64), slots, slots + 100, sampled, SamplingFlags(0))


def take_triton(loaded: LoadedModel, rows: int) -> None:
    """Attention by Triton's kernels, for `rows` requests, where a server would not choose them."""
    runner = loaded.runner
    runner.tables.attn_backend = runner.attention_backend("triton", rows, runner.tables.max_len)


def kv_buffers(runner: ModelRunner) -> list[Tensor]:
    """K and V of every layer but for the padding page, in which both kinds of slot lie upon each other."""
    shape, pool = runner.kv_shape, runner.kv_pool
    layers = [(s.layer, shape.swa_per_page if s.sliding else shape.full_per_page) for s in runner.kv_layers]
    return [t[per_page:] for layer, per_page in layers for t in pool.get_kv(layer)]
