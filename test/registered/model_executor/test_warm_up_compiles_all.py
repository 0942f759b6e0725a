"""After a runner's warm-up and the capture of its graphs no step compiles a kernel, whatever it consists of.

A process of its own: a GPU that does nothing stands in.
"""

import random
import sys

from sglang.test import stand_in_gpu

# isort: split

import numpy as np
import pytest
import torch

from sglang.srt.layers.attention.triton_backend import TritonBackend
from sglang.srt.layers.sampler import SamplingFlags
from sglang.srt.model_executor.cuda_graph_runner import capture_sizes, padded
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.model_executor.step_io import StepInput
from sglang.srt.model_executor.warm_up import step_sizes
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.engine_harness import load
from sglang.test.tiny_models import VOCAB, make_tiny_gemma4

register_cpu_ci(est_time=30, suite="base-a-test-cpu")

MOST, ROWS = 8192, 64  # tokens of a step, requests


@pytest.fixture(params=[("moe_top4", False), ("moe_top4", True), ("ple_shared_double_wide", False)])
def runner(request, tmp_path) -> ModelRunner:
    variant, deterministic = request.param
    settings = {"max_total_tokens": 2 * MOST, "chunked_prefill_size": MOST, "max_running_requests": ROWS}
    settings |= {"enable_deterministic_inference": deterministic, "device": "cpu"}
    runner = load(make_tiny_gemma4(tmp_path, variant), **settings).runner
    heads, window, longest = runner.config.text.num_heads, runner.config.sliding_window, runner.req_to_token.shape[1]
    runner.attn_backend = TritonBackend(runner.kv_layers, heads, ROWS, window, longest, torch.bfloat16, "cpu")
    return runner


def random_step(rng: random.Random, longest: int) -> StepInput:
    """Prompt chunks, some behind a cached prefix, and decodes."""
    tokens, decodes = int(2 ** rng.uniform(0, np.log2(MOST))), rng.choice([0, 1, 2, 3, 5, 16, 26, 40])
    count = min(ROWS - decodes, max(rng.choice([1, 1, 2, 7, 20]), -(-tokens // longest)))
    new = [max(1, min(longest, tokens // count + rng.randrange(-5, 6))) for _ in range(count)]
    prefix = [rng.choice([0, rng.randrange(longest - n + 1)]) for n in new]
    lengths = [p + n for p, n in zip(prefix, new, strict=True)] + [rng.randrange(1, longest) for _ in range(decodes)]
    slots, everyone = np.arange(1, sum(new) + decodes + 1), np.arange(count + decodes)
    return StepInput(
        rows=everyone + 1,
        seq_lens=np.array(lengths),
        extend_lens=np.array(new + [1] * decodes),
        num_extends=count,
        prefill_ids=np.array(rng.choices(range(VOCAB), k=sum(new))),
        out_cache_loc=slots,
        out_cache_loc_swa=slots,
        sampled=everyone,
        flags=SamplingFlags(0),
    )


@torch.inference_mode()
def test_nothing_is_compiled_later(runner: ModelRunner):
    compiled = stand_in_gpu.compiled
    stand_in_gpu.forget()
    for size in capture_sizes(ROWS):
        runner.decode(torch.as_tensor(padded(np.zeros((4, 0)), size, [0, 1, 0, 0])), [1] * size)
    first, *others = step_sizes(MOST)
    runner.warm_up([first])
    by_the_first = len(compiled)
    runner.warm_up(others)
    assert len(compiled) > by_the_first > 5, "steps of all sizes take the same kernels"
    compiled.clear()
    rng = random.Random(0)
    for _ in range(60):
        step = random_step(rng, runner.config.context_len)
        runner.launch(step).result()
        assert not compiled, f"{compiled} for {step.extend_lens} of {step.seq_lens}, {step.num_extends} extends"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
