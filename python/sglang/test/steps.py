"""Steps that tests make by hand, the attention backend they may run on, and what they leave behind."""

import numpy as np
from torch import Tensor

from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.model_executor.step_io import StepInput
from sglang.srt.sampling.sampling_flags import SamplingFlags
from sglang.test.engine_harness import LoadedModel


def step_of(rows, seq_lens, extend_lens, num_extends, ids, slots) -> StepInput:
    """Every request gets a token; slots of the sliding pool are 50 higher."""
    arrays = (np.array(a, dtype=np.int64) for a in (rows, seq_lens, extend_lens))
    slots = np.array(slots, dtype=np.int64)
    sampled = np.arange(len(rows))
    return StepInput(*arrays, num_extends, np.array(ids, dtype=np.int64), slots, slots + 50, sampled, SamplingFlags(0))


def take_triton(loaded: LoadedModel, rows: int) -> None:
    """Attention by Triton's kernels, for `rows` requests, where a server would not choose them."""
    runner = loaded.runner
    runner.tables.attn_backend = runner.attention_backend("triton", rows, runner.tables.max_len)


def kv_buffers(runner: ModelRunner) -> list[Tensor]:
    """K and V of every layer, in both pools."""
    pools = (runner.kv_pool.full, runner.kv_pool.swa)
    return [t for pool in pools for kv in pool.buffers.values() for t in kv]
