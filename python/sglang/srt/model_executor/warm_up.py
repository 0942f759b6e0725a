"""Prefill steps of every size that makes kernels differ, run before a server is ready, so that no request waits for a
compiler.

Triton compiles a kernel when it is first launched, which takes up to a second, and what a prefill or mixed step
launches depends on how many tokens it has. Decode steps are compiled when their graphs are captured. These steps belong
to nobody: request row 0 and slot 0 of both pools, where padding lies.
"""

import numpy as np

from sglang.srt.layers.moe.fused_moe_triton.config import TUNED_TOKENS
from sglang.srt.layers.sampler import SamplingFlags
from sglang.srt.model_executor.step_io import StepInput


def step_sizes(most: int) -> list[int]:
    """Numbers of tokens, ascending, that together take every kernel of a step of up to `most`: experts have tiles for
    each of TUNED_TOKENS, and whatever else changes with the size does so between two of them."""
    return [*(size for size in TUNED_TOKENS if size < most), most]


def nobodys_step(tokens: int, longest: int) -> StepInput:
    """A prefill of `tokens` tokens, in prompts of up to `longest`."""
    lengths = np.full(-(-tokens // longest), longest, dtype=np.int64)
    lengths[-1] -= lengths.sum() - tokens
    return StepInput(
        rows=np.zeros_like(lengths),
        seq_lens=lengths,
        extend_lens=lengths,
        num_extends=len(lengths),
        prefill_ids=np.zeros(tokens, dtype=np.int64),
        out_cache_loc=np.zeros(tokens, dtype=np.int64),
        out_cache_loc_swa=np.zeros(tokens, dtype=np.int64),
        sampled=np.zeros(0, dtype=np.int64),
        flags=SamplingFlags(0),
    )
