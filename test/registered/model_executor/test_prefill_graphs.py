"""Prefill and mixed steps that are replayed give what the same steps give launched one by one.

Without a GPU kernels are interpreted, and a replay is the captured function run again.
"""

import random
import sys

import sglang.test.triton_testing

# isort: split

import numpy as np
import pytest
import torch
from torch import Tensor

from sglang.srt.managers.tp_worker import InlineWorker
from sglang.srt.model_executor import prefill_graphs
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.model_executor.prefill_graphs import (
    MAX_DECODE_KEYS,
    PrefillGraphs,
    prefill_sizes,
    work_arrays,
)
from sglang.srt.model_executor.step_io import StepInput
from sglang.srt.model_executor.step_layout import filled
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci
from sglang.test.engine_harness import LoadedModel, load
from sglang.test.steps import kv_buffers, step_of, take_triton
from sglang.test.tiny_models import VOCAB, F, S, make_tiny_gemma4

register_cpu_ci(est_time=15, suite="base-a-test-cpu")
register_cuda_ci(est_time=60, stage="base-b", runner_config="1-gpu-large")

GPU = sglang.test.triton_testing.DEVICE == "cuda"
ROWS, MOST = 6, 17  # requests, tokens of the largest graph


def run_again(step, pool, device):
    """Stands in for a capture: a replay fills the first run's outputs."""
    batch, hidden = step()

    def replay():
        again, new = step()
        hidden.copy_(new)
        batch.input_ids.copy_(again.input_ids)

    return replay, (batch, hidden), pool


@pytest.mark.parametrize(("most", "longest"), [(1, 100), (64, 100), (100, 10), (4096, 8192), (5000, 512)])
def test_sizes_are_near_each_other(most, longest):
    sizes = prefill_sizes(most, longest)
    assert sizes == sorted(set(sizes)) and sizes[-1] == most
    gaps = np.diff([0, *sizes])
    assert all(gap <= min(longest, max(64, size // 16)) for gap, size in zip(gaps, sizes, strict=True))
    assert all(gap <= max(16, size // 4) for gap, size in zip(gaps, sizes, strict=True))


def test_tiles_of_a_step():
    """A chunk of 4, a prompt of 3, a decode, padding's empty ones and the 4 left over of 12 tokens."""
    step = filled(step_of([3, 1, 2], [7, 3, 9], [4, 3, 1], 2, range(7), range(1, 9)), tokens=12, requests=6)
    twos, fours = (work.tolist() for work in work_arrays(step, [2, 4], 12))
    assert fours[:4] == [[2, 0], [0, 0], [1, 0], [5, 0]] and fours[4:] == [[3, 0]] * 5  # [3, 0]: of no tokens
    assert len(twos) == 12 and sorted(twos[:7]) == [[0, 0], [0, 2], [1, 0], [1, 2], [2, 0], [5, 0], [5, 2]]
    assert twos[7:] == [[3, 0]] * 5


@pytest.fixture(params=["moe_top2", "dense_k_eq_v", "ple_shared_double_wide"] if GPU else ["moe_top2"])
def loaded(request, tmp_path, monkeypatch) -> LoadedModel:
    layers = {} if GPU else {"num_hidden_layers": 2, "layer_types": [S, F]}  # one of each kind: each is interpreted
    path = make_tiny_gemma4(tmp_path, request.param, dtype=torch.float32, **layers)
    settings = {"max_total_tokens": 1500, "max_running_requests": ROWS, "chunked_prefill_size": 40}
    settings["enable_piecewise_cuda_graph"] = False  # they are captured later, to compare
    loaded = load(path, **settings)
    if not GPU:
        take_triton(loaded, ROWS)
        monkeypatch.setattr(prefill_graphs, "capture", run_again)
    return loaded


def answers(loaded: LoadedModel) -> tuple[list[list[int]], list[float]]:
    """Greedy tokens of requests that come while others are answered, and log-probabilities of prompts and answers."""
    h = loaded.harness(worker=InlineWorker(loaded.runner))
    for i, length in enumerate((5, 33, 1, 60, 18)):
        prompt = random.Random(i).choices(range(3, VOCAB), k=length)
        h.add(f"r{i}", prompt, 6, params={"top_k": 1}, return_logprob=True, logprob_start_len=0)
        h.step()
    h.run()
    h.kv.check_idle()
    return [r.ids for r in h.received.values()], [x for r in h.received.values() for x in r.logprobs]


def outcome(runner: ModelRunner, steps: list[StepInput]) -> list[Tensor]:
    """Next tokens of each step, and what the caches hold afterwards."""
    tokens = [torch.tensor(runner.launch(step).result().next_ids) for step in steps]
    return tokens + [t.clone() for t in kv_buffers(runner)]


def test_steps_equal_those_launched_one_by_one(loaded: LoadedModel):
    """A prompt; then a chunk behind it, another prompt and, in the second step that is not full, a decode."""
    ids = random.Random(0).choices(range(3, VOCAB), k=40)
    steps = [
        step_of([1], [15], [15], 1, ids[:15], range(1, 16)),
        step_of([2, 1], [9, 20], [9, 5], 2, ids[15:29], range(16, 30)),
        step_of([3, 2, 1], [3, 10, 21], [3, 1, 1], 1, ids[29:32], range(30, 35)),
    ]
    runner = loaded.runner
    plain = outcome(runner, steps)
    for t in kv_buffers(runner):
        t.zero_()
    runner.capture_prefills(MOST, ROWS)
    replayed = outcome(runner, steps)
    for got, want in zip(replayed[:3], plain[:3], strict=True):
        assert torch.equal(got, want)
    for got, want in zip(replayed[3:], plain[3:], strict=True):
        assert torch.allclose(got, want, atol=1e-5) and got.abs().sum() > 0


@pytest.mark.skipif(not GPU, reason="the interpreter would take minutes")
def test_requests_get_the_same_answers(loaded: LoadedModel, monkeypatch):
    plain, plain_logprobs = answers(loaded)
    loaded.runner.capture_prefills(42, ROWS)  # chunks of 40 and up to two decodes
    steps, graphs = [], loaded.runner.prefill_graphs
    run = graphs.run
    monkeypatch.setattr(graphs, "run", lambda step: steps.append(step) or run(step))
    replayed, logprobs = answers(loaded)
    assert replayed == plain and torch.allclose(torch.tensor(logprobs), torch.tensor(plain_logprobs), atol=1e-4)
    assert len(steps) >= 4 and any(len(step.rows) > step.num_extends for step in steps)


def test_what_no_graph_takes(monkeypatch):
    monkeypatch.setattr(prefill_graphs, "capture", lambda step, pool, device: (None, None, pool))
    graphs = PrefillGraphs(lambda *_: None, [16], MOST, ROWS, 100, torch.device("cpu"))
    assert graphs.largest == MOST
    assert graphs.takes(step_of([1], [MOST], [MOST], 1, [5] * MOST, range(MOST)))
    assert not graphs.takes(step_of([1], [MOST + 1], [MOST + 1], 1, [5] * (MOST + 1), range(MOST + 1)))
    rows = list(range(1, ROWS + 1))
    assert graphs.takes(step_of(rows, [1] * ROWS, [1] * ROWS, 1, [5], range(ROWS)))
    assert not graphs.takes(step_of([*rows, 9], [1] * (ROWS + 1), [1] * (ROWS + 1), 1, [5], range(ROWS + 1)))
    assert graphs.takes(step_of([1, 2], [1, MAX_DECODE_KEYS], [1, 1], 1, [5], [1, 2]))
    assert not graphs.takes(step_of([1, 2], [1, MAX_DECODE_KEYS + 1], [1, 1], 1, [5], [1, 2]))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
