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

from sglang.srt.layers.attention.triton_backend import TritonBackend
from sglang.srt.layers.sampler import SamplingFlags
from sglang.srt.managers.tp_worker import InlineWorker
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.model_executor.prefill_graphs import MAX_DECODE_KEYS, PrefillGraphs, StepShape, prefill_sizes
from sglang.srt.model_executor.step_io import StepInput
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci
from sglang.test.engine_harness import LoadedModel, load
from sglang.test.tiny_models import VOCAB, make_tiny_gemma4

register_cpu_ci(est_time=30, suite="base-a-test-cpu")
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


def step_of(rows, seq_lens, extend_lens, num_extends, ids, slots) -> StepInput:
    arrays = (np.array(a, dtype=np.int64) for a in (rows, seq_lens, extend_lens))
    slots = np.array(slots, dtype=np.int64)
    sampled = np.arange(len(rows))
    return StepInput(*arrays, num_extends, np.array(ids, dtype=np.int64), slots, slots + 50, sampled, SamplingFlags(0))


@pytest.mark.parametrize(("most", "longest"), [(1, 100), (64, 100), (100, 10), (4096, 8192), (5000, 512)])
def test_sizes_are_near_each_other(most, longest):
    sizes = prefill_sizes(most, longest)
    assert sizes == sorted(set(sizes)) and sizes[-1] == most
    gaps = np.diff([0, *sizes])
    assert all(gap <= min(longest, max(64, size // 16)) for gap, size in zip(gaps, sizes, strict=True))


def test_arrays_of_a_step():
    """A chunk behind a prefix, a prompt and a decode in a graph of 12 tokens, with tiles of 2 and 4."""
    step = step_of([3, 1, 2], [7, 3, 9], [4, 3, 1], 2, [10, 11, 12, 13, 20, 21, 22], range(1, 9))
    shape = StepShape(tokens=12, requests=6, tile_tokens=(2, 4))
    numbers, work = (torch.from_numpy(a) for a in shape.host_arrays(step))
    assert {name: values.tolist() for name, values in shape.split_numbers(numbers).items()} == {
        "token_rows": [3, 3, 3, 3, 1, 1, 1, 2, 0, 0, 0, 0],
        "positions": [3, 4, 5, 6, 0, 1, 2, 8, 0, 1, 2, 3],
        "out_cache_loc": [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0],
        "out_cache_loc_swa": [51, 52, 53, 54, 55, 56, 57, 58, 0, 0, 0, 0],
        "ids": [10, 11, 12, 13, 20, 21, 22, -1, 0, 0, 0, 0],
        "rows": [3, 1, 2, 0, 0, 0],
        "seq_lens": [7, 3, 9, 0, 0, 4],
        "extend_lens": [4, 3, 1, 0, 0, 4],
        "prefix_lens": [3, 0, 8, 0, 0, 0],
        "starts": [0, 4, 7, 8, 8, 8],
    }
    fours = shape.split_work(work)[4].tolist()
    assert fours[:4] == [[2, 0], [0, 0], [1, 0], [5, 0]] and fours[4:] == [[3, 0]] * 5  # [3, 0]: of no tokens
    twos = shape.split_work(work)[2].tolist()
    assert len(twos) == 12 and sorted(twos[:7]) == [[0, 0], [0, 2], [1, 0], [1, 2], [2, 0], [5, 0], [5, 2]]


@pytest.fixture(params=["moe_top2", "dense_k_eq_v", "ple_shared_double_wide"] if GPU else ["moe_top2"])
def loaded(request, tmp_path) -> LoadedModel:
    path = make_tiny_gemma4(tmp_path, request.param, dtype=torch.float32)
    loaded = load(path, max_total_tokens=1500, max_running_requests=ROWS, chunked_prefill_size=40)
    if not GPU:
        runner, config = loaded.runner, loaded.config
        longest = runner.req_to_token.shape[1]
        runner.attn_backend = TritonBackend(
            runner.kv_layers, config.text.num_heads, ROWS, config.sliding_window, longest, torch.float32, "cpu"
        )
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
    """Next tokens of each step, and what the caches hold afterwards but for slot 0."""
    tokens = [torch.tensor(runner.launch(step).result().next_ids) for step in steps]
    pools = (runner.kv_pool.full, runner.kv_pool.swa)
    return tokens + [t[1:].clone() for pool in pools for kv in pool.buffers.values() for t in kv]


def capture(runner: ModelRunner) -> None:
    runner.capture_prefills(MOST, ROWS, **({} if GPU else {"capture": run_again}))


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
    for pool in (runner.kv_pool.full, runner.kv_pool.swa):
        for kv in pool.buffers.values():
            for t in kv:
                t.zero_()
    capture(runner)
    replayed = outcome(runner, steps)
    for got, want in zip(replayed[:3], plain[:3], strict=True):
        assert torch.equal(got, want)
    for got, want in zip(replayed[3:], plain[3:], strict=True):
        assert torch.allclose(got, want, atol=1e-5) and got.abs().sum() > 0


@pytest.mark.skipif(not GPU, reason="the interpreter would take minutes")
def test_requests_get_the_same_answers(loaded: LoadedModel, monkeypatch):
    plain, plain_logprobs = answers(loaded)
    capture(loaded.runner)
    steps, graphs = [], loaded.runner.prefill_graphs
    run = graphs.run
    monkeypatch.setattr(graphs, "run", lambda step: steps.append(step) or run(step))
    replayed, logprobs = answers(loaded)
    assert replayed == plain and torch.allclose(torch.tensor(logprobs), torch.tensor(plain_logprobs), atol=1e-4)
    assert len(steps) >= 5 and any(len(step.rows) > step.num_extends for step in steps)


def test_what_no_graph_takes():
    def no_capture(step, pool, device):
        return None, None, pool

    graphs = PrefillGraphs(lambda *_: None, MOST, ROWS, 100, (16,), torch.device("cpu"), no_capture)
    assert graphs.takes(step_of([1], [MOST], [MOST], 1, [5] * MOST, range(MOST)))
    assert not graphs.takes(step_of([1], [MOST + 1], [MOST + 1], 1, [5] * (MOST + 1), range(MOST + 1)))
    rows = list(range(1, ROWS + 1))
    assert graphs.takes(step_of(rows, [1] * ROWS, [1] * ROWS, 1, [5], range(ROWS)))
    assert not graphs.takes(step_of([*rows, 9], [1] * (ROWS + 1), [1] * (ROWS + 1), 1, [5], range(ROWS + 1)))
    assert graphs.takes(step_of([1, 2], [1, MAX_DECODE_KEYS], [1, 1], 1, [5], [1, 2]))
    assert not graphs.takes(step_of([1, 2], [1, MAX_DECODE_KEYS + 1], [1, 1], 1, [5], [1, 2]))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
