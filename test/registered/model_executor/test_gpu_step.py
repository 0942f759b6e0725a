"""The step on a GPU: graphs give the bits of the same kernels launched one by one, and no launch waits for the GPU."""

import random
import sys

import numpy as np
import pytest
import torch

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.managers.tp_worker import InlineWorker
from sglang.srt.model_executor.cuda_graph_runner import padded
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.resolved_args import resolve
from sglang.srt.server_args import ServerArgs
from sglang.test.ci.ci_register import register_cuda_ci
from sglang.test.engine_harness import StrictWorker
from sglang.test.scheduler_harness import Harness
from sglang.test.steps import kv_buffers
from sglang.test.tiny_models import VOCAB, make_tiny_gemma4

register_cuda_ci(est_time=30, stage="base-b", runner_config="1-gpu-large")

ROWS = 24


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> ModelRunner:
    path = make_tiny_gemma4(tmp_path_factory.mktemp("moe"), "moe_top4", dtype=torch.bfloat16)
    typed = ServerArgs(model_path=str(path), max_running_requests=ROWS, max_total_tokens=4000, chunked_prefill_size=40)
    config = ModelConfig.load(str(path), None, None, "auto")
    return ModelRunner(resolve(typed, config, "cuda"), config)


def harness(runner: ModelRunner, worker, overlap: bool = True) -> Harness:
    return Harness(
        shape=runner.kv_shape,
        window=runner.config.sliding_window,
        rows=ROWS,
        max_len=min(runner.config.context_len, runner.kv_shape.full_size),
        chunk=40,
        overlap=overlap,
        vocab_size=VOCAB,
        worker=worker,
    )


def prompt(i: int) -> list[int]:
    return random.Random(i).choices(range(3, VOCAB), k=5 + 7 * i)


@torch.inference_mode()
@pytest.mark.parametrize("batch", [1, 3, 8, 13, ROWS])
def test_graph_equals_eager(runner: ModelRunner, batch: int):
    """Logits and the cached K and V, padding rows included."""
    rows, lengths = np.arange(1, batch + 1), np.arange(batch) * 3 + 1
    inputs = np.stack((rows, lengths, rows + 100, rows + 200))
    _, replayed = runner.graphs.run(inputs)
    replayed = replayed[:batch].clone()
    cached = [t.clone() for t in kv_buffers(runner)]
    size = next(s for s in runner.graphs.sizes if s >= batch)
    same = torch.as_tensor(padded(inputs, size, runner.graphs.padding), device="cuda")
    eager = runner.decode(same, [1] * size)[:batch]
    assert torch.isfinite(eager).all() and torch.equal(eager, replayed)
    assert all(torch.equal(a, b) for a, b in zip(cached, kv_buffers(runner), strict=True))


SAMPLING = [
    {"top_k": 1},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9},
    {"temperature": 1.5, "min_p": 0.05, "top_p": 0.95},
    {"top_k": 1, "frequency_penalty": 0.5, "min_new_tokens": 4},
    {"top_k": 1, "logit_bias": {"5": 3.0}, "repetition_penalty": 1.2},
]


def test_no_launch_waits_for_the_device(runner: ModelRunner):
    """Prefill, decode, every kind of sampling and log-probabilities of prompt and output."""
    for worker in (InlineWorker(runner), StrictWorker(runner)):  # the first compiles what the second may then only run
        h = harness(runner, worker)
        for i in range(10):
            wanted = {
                "return_logprob": True,
                "logprob_start_len": 0,
                "top_logprobs_num": 2,
                "token_ids_logprob": [7, 9],
            }
            h.add(
                f"r{i}", prompt(i), 30, params=SAMPLING[i % 5] | {"sampling_seed": i}, **(wanted if i % 3 == 0 else {})
            )
            h.step()
        h.run()
        assert all(len(r.ids) == 30 and len(r.finals) == 1 for r in h.received.values())
        h.kv.check_idle()


def test_overlap_gives_the_same_tokens(runner: ModelRunner):
    """A step is launched before the tokens of the one before it are known."""
    outputs = []
    for overlap in (True, False):
        h = harness(runner, InlineWorker(runner), overlap)
        h.add("a", prompt(4), 60, params={"top_k": 1})
        h.run()
        outputs.append(h.received["a"].ids)
        h.kv.flush()
    assert outputs[0] == outputs[1] and len(set(outputs[0])) > 5


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
