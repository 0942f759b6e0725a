"""After a runner's start, which captures graphs and warms up, no step compiles a kernel, whatever it consists of.

A process of its own: a GPU that does nothing stands in.
"""

import random
import sys

from sglang.test import stand_in_gpu

# isort: split

import numpy as np
import pytest
import torch

from sglang.srt.model_executor import prefill_graphs
from sglang.srt.model_executor.cuda_graph_runner import capture_sizes, padded
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.model_executor.prefill_graphs import warm_up_sizes
from sglang.srt.model_executor.step_io import StepInput
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.engine_harness import load
from sglang.test.steps import step_of, take_triton
from sglang.test.tiny_models import VOCAB, make_tiny_gemma4

register_cpu_ci(est_time=11, suite="base-a-test-cpu")

MOST, MOST_IN_GRAPHS, ROWS = 8192, 512, 64  # tokens of a step, those of one with a graph, requests


@pytest.fixture(params=[("moe_top4", False), ("moe_top4", True), ("ple_shared_double_wide", False)])
def runner(request, tmp_path) -> ModelRunner:
    variant, deterministic = request.param
    settings = {"max_total_tokens": 2 * MOST, "chunked_prefill_size": MOST, "max_running_requests": ROWS}
    settings |= {"enable_deterministic_inference": deterministic, "device": "cpu"}
    loaded = load(make_tiny_gemma4(tmp_path, variant), **settings)
    take_triton(loaded, ROWS)
    return loaded.runner


def random_step(rng: random.Random, longest: int) -> StepInput:
    """Prompt chunks, some behind a cached prefix, and decodes."""
    tokens, decodes = int(2 ** rng.uniform(0, np.log2(MOST))), rng.choice([0, 1, 2, 3, 5, 16, 26, 40])
    count = min(ROWS - decodes, max(rng.choice([1, 1, 2, 7, 20]), -(-tokens // longest)))
    new = [max(1, min(longest, tokens // count + rng.randrange(-5, 6))) for _ in range(count)]
    prefix = [rng.choice([0, rng.randrange(longest - n + 1)]) for n in new]
    lengths = [p + n for p, n in zip(prefix, new, strict=True)] + [rng.randrange(1, longest) for _ in range(decodes)]
    slots, everyone = np.arange(1, sum(new) + decodes + 1), np.arange(count + decodes)
    ids = rng.choices(range(VOCAB), k=sum(new))
    return step_of(everyone + 1, lengths, new + [1] * decodes, count, ids, slots)


def run_once(step, pool, device):
    """Stands in for a capture, and for what it runs before."""
    return None, step(), pool


@torch.inference_mode()
def test_nothing_is_compiled_later(runner: ModelRunner, monkeypatch):
    monkeypatch.setattr(prefill_graphs, "capture", run_once)
    compiled = stand_in_gpu.compiled
    stand_in_gpu.forget()
    for size in capture_sizes(ROWS):
        runner.decode(torch.as_tensor(padded(np.zeros((4, 0)), size, [0, 1, 0, 0])), [1] * size)
    runner.capture_prefills(MOST_IN_GRAPHS, ROWS)
    by_graphs = len(compiled)
    runner.warm_up(warm_up_sizes(runner.prefill_graphs.largest, MOST))
    runner.prefill_graphs = None  # what they take compiles nothing, and this GPU can't replay
    has_experts = any("experts" in name for name, _ in runner.model.named_parameters())
    assert by_graphs > 5 and (len(compiled) > by_graphs or not has_experts), "steps of all sizes take the same kernels"
    compiled.clear()
    rng = random.Random(0)
    for _ in range(60):
        step = random_step(rng, runner.config.context_len)
        runner.launch(step).result()
        assert not compiled, f"{compiled} for {step.extend_lens} of {step.seq_lens}, {step.num_extends} extends"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
