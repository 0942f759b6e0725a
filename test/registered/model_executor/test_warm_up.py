"""Steps of nobody before a server is ready: which there are, and that they change nothing for anybody."""

import sys

import numpy as np
import pytest
import torch

from sglang.srt.layers.moe.fused_moe_triton.config import TUNED_TOKENS
from sglang.srt.model_executor.warm_up import nobodys_step, step_sizes
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci
from sglang.test.engine_harness import load
from sglang.test.tiny_models import make_tiny_gemma4

register_cpu_ci(est_time=10, suite="base-a-test-cpu")
register_cuda_ci(est_time=30, stage="base-b", runner_config="1-gpu-large")


def test_sizes_end_with_the_largest_step():
    assert step_sizes(8192) == list(TUNED_TOKENS)
    assert step_sizes(100) == [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 100] and step_sizes(1) == [1]


@pytest.mark.parametrize(("tokens", "lengths"), [(1, [1]), (40, [40]), (41, [40, 1]), (120, [40, 40, 40])])
def test_a_step_of_nobody_fits_the_context(tokens, lengths):
    step = nobodys_step(tokens, longest=40)
    assert step.extend_lens.tolist() == step.seq_lens.tolist() == lengths and not step.rows.any()
    assert step.num_extends == len(lengths) and len(step.prefill_ids) == len(step.out_cache_loc) == tokens


@pytest.mark.parametrize("variant", ["moe_top4", "dense_k_eq_v", "ple_shared_double_wide"])
def test_nobody_notices(variant, tmp_path):
    """Tables, last tokens and cached keys and values are as before, but for row and slot 0."""
    runner = load(make_tiny_gemma4(tmp_path, variant), max_total_tokens=3000, max_running_requests=4).runner
    buffers = [t for pool in (runner.kv_pool.full, runner.kv_pool.swa) for kv in pool.buffers.values() for t in kv]
    state = [runner.req_to_token, runner.req_to_token_swa, runner.last_tokens, *buffers]
    rng = np.random.default_rng(0)
    for t in state:
        t.copy_(torch.as_tensor(rng.integers(0, 100, t.shape)))
    before = [t.clone() for t in state]
    runner.warm_up([1, 40, runner.config.context_len + 100])
    assert all(torch.equal(a[1:], b[1:]) for a, b in zip(before, state, strict=True))
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(before, state, strict=True))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
