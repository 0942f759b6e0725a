"""Padding steps before a server is ready: which there are, and that they change nothing for anybody."""

import sys

import numpy as np
import pytest
import torch

from sglang.srt.model_executor.prefill_graphs import warm_up_sizes
from sglang.srt.ops.moe.config import TUNED_TOKENS
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci
from sglang.test.engine_harness import load
from sglang.test.steps import kv_buffers
from sglang.test.tiny_models import make_tiny_gemma4

register_cpu_ci(est_time=10, suite="base-a-test-cpu")
register_cuda_ci(est_time=30, stage="base-b", runner_config="1-gpu-large")


def test_warm_up_is_for_steps_beyond_the_graphs():
    assert warm_up_sizes(0, 8192) == list(TUNED_TOKENS)
    assert warm_up_sizes(100, 2000) == [128, 256, 512, 1024, 1536, 2000]
    assert warm_up_sizes(4096, 4096) == warm_up_sizes(4096, 40) == []


@pytest.mark.parametrize("variant", ["moe_top4", "dense_k_eq_v", "ple_shared_double_wide"])
def test_nobody_notices(variant, tmp_path):
    """Tables, last tokens and cached keys and values are as before, but for row 0 and the padding page."""
    runner = load(make_tiny_gemma4(tmp_path, variant), max_total_tokens=3000, max_running_requests=4).runner
    tables = runner.tables
    tables, buffers = [tables.req_to_token, tables.req_to_token_swa, tables.last_tokens], kv_buffers(runner)
    rng = np.random.default_rng(0)
    for t in (*tables, *buffers):
        t.copy_(torch.as_tensor(rng.integers(0, 100, t.shape)))
    before = [t.clone() for t in tables], [t.clone() for t in buffers]
    runner.warm_up([1, 40, runner.config.context_len + 100])
    assert all(torch.equal(a[1:], b[1:]) for a, b in zip(before[0], tables, strict=True))
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(before[0], tables, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before[1], buffers, strict=True))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
