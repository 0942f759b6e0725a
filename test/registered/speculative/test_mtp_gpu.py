"""Speculation on a GPU: a round in a CUDA graph gives the bits of the same kernels launched one by one, and no launch
waits for the GPU."""

import random
import sys

import numpy as np
import pytest
import torch

from sglang.srt.managers.tp_worker import InlineWorker
from sglang.srt.model_executor.cuda_graph_runner import padded
from sglang.srt.speculative.frozen_kv_mtp import DRAFT_FLAGS
from sglang.test.ci.ci_register import register_cuda_ci
from sglang.test.engine_harness import StrictWorker, engine
from sglang.test.tiny_models import VOCAB, make_tiny_assistant, make_tiny_gemma4

register_cuda_ci(est_time=40, stage="base-b", runner_config="1-gpu-large")

ROWS = 12


@pytest.fixture(scope="module", params=[(5, 1, 6), (3, 2, 7)], ids=["line", "tree"])
def harness(request, tmp_path_factory):
    steps, topk, tokens = request.param
    return engine(
        make_tiny_gemma4(tmp_path_factory.mktemp("target"), "moe_top4", dtype=torch.bfloat16),
        speculative_algorithm="NEXTN",
        speculative_draft_model_path=str(make_tiny_assistant(tmp_path_factory.mktemp("drafter"), "moe_top4")),
        speculative_num_steps=steps,
        speculative_eagle_topk=topk,
        speculative_num_draft_tokens=tokens,
        max_running_requests=ROWS,
        cuda_graph_max_bs=ROWS,
    )


def cached(runner, lengths) -> None:
    """Request rows 1, 2, .. have so many tokens with K and V, a newest token and a hidden state, all at random."""
    generator = torch.Generator("cuda").manual_seed(0)
    runner.kv_pool.buffer.normal_(generator=generator)
    for i, length in enumerate(lengths.tolist()):
        slots = 100 + 40 * i + torch.arange(length, device="cuda")
        runner.tables.note_slots(
            torch.full_like(slots, i + 1), torch.arange(length, device="cuda"), slots, slots + 2000
        )
    runner.tables.last_tokens.random_(3, VOCAB, generator=generator)
    runner.tables.hidden.normal_(generator=generator)


@torch.inference_mode()
@pytest.mark.parametrize("flags", [DRAFT_FLAGS & 0, DRAFT_FLAGS])
@pytest.mark.parametrize("batch", [1, 3, ROWS])
def test_graph_equals_eager(harness, batch: int, flags):
    runner = harness.worker.runner
    rounds, nodes = runner.speculation, runner.speculation.settings.num_draft_tokens
    rows, before = np.arange(1, batch + 1), np.arange(batch) * 3 + 1
    cached(runner, before)
    slots = 600 + np.arange(batch * nodes).reshape(nodes, batch)
    inputs = np.concatenate([rows[None], before[None], slots, slots])
    graphs = rounds.graphs[flags]
    _, replayed = graphs.run(inputs)
    replayed = replayed.cut(batch)
    replayed = [replayed.draft.tokens.clone(), replayed.hidden.clone(), replayed.logits.clone()]
    size = next(s for s in graphs.sizes if s >= batch)
    same = torch.as_tensor(padded(inputs, size, graphs.padding), device="cuda")
    eager = rounds.make_round(same, [1] * size, flags).cut(batch)
    for a, b in zip((eager.draft.tokens, eager.hidden, eager.logits), replayed, strict=True):
        assert torch.isfinite(a).all() and torch.equal(a, b)


SAMPLING = [
    {"top_k": 1},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9},
    {"top_k": 1, "frequency_penalty": 0.5, "min_new_tokens": 4},
]


def test_no_launch_waits_for_the_device(harness):
    runner = harness.worker.runner
    for worker in (InlineWorker(runner), StrictWorker(runner)):  # the first compiles what the second may then only run
        harness.scheduler.worker = worker
        harness.received.clear()
        for i in range(9):
            prompt = random.Random(i).choices(range(3, VOCAB), k=5 + 7 * i)
            wanted = {"return_logprob": i % 3 == 0, "top_logprobs_num": 2}
            harness.add(f"r{i}", prompt, 30, params=SAMPLING[i % 3] | {"sampling_seed": i}, **wanted)
            harness.step()
        harness.run()
        assert all(len(r.ids) == 30 and len(r.finals) == 1 for r in harness.received.values())
        harness.kv.check_idle()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
