"""A step's two halves: what happens to the logits between them is what the tokens follow."""

import sys

import pytest
import torch

from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.model_executor.step_io import StepInput
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci
from sglang.test.engine_harness import load
from sglang.test.steps import step_of
from sglang.test.tiny_models import make_tiny_assistant, make_tiny_gemma4

register_cpu_ci(est_time=15, suite="base-a-test-cpu")
register_cuda_ci(est_time=30, stage="base-b", runner_config="1-gpu-large")

PROMPT = step_of([1], [5], [5], 1, [7, 30, 9, 12, 4], range(1, 6))


@torch.inference_mode()
def only(logits: torch.Tensor, token: int) -> None:
    logits.fill_(-torch.inf)
    logits[:, token] = 0


def sampled(runner: ModelRunner, step: StepInput, token: int) -> list[int]:
    """The step's tokens where `token` is all that the logits leave."""
    forwarded = runner.forward(step)
    only(forwarded.round.logits if runner.speculation and not step.num_extends else forwarded.logits, token)
    return runner.sample(step, forwarded).result().next_ids[0]


def test_tokens_are_what_the_logits_leave(tmp_path):
    """Also captured: a graph's logits may be changed before they are sampled from. The next step starts from the token
    that was sampled."""
    runner = load(make_tiny_gemma4(tmp_path, "moe_top2"), max_total_tokens=400, max_running_requests=2).runner
    decodes = [step_of([1], [n], [1], 0, [], [n]) for n in (6, 7)]
    assert [sampled(runner, step, token) for step, token in zip([PROMPT, *decodes], (40, 41, 42), strict=True)] == [
        [40],
        [41],
        [42],
    ]
    assert runner.tables.last_tokens[1] == 42
    forwarded = runner.forward(step_of([1], [8], [1], 0, [], [8]))
    runner.tables.last_tokens[1] = 41
    assert not torch.equal(forwarded.logits.clone(), runner.forward(step_of([1], [8], [1], 0, [], [8])).logits)


def test_drafts_are_judged_by_what_the_logits_leave(tmp_path):
    folder = make_tiny_gemma4(tmp_path / "target", "moe_top2")
    drafter = make_tiny_assistant(tmp_path / "drafter", "moe_top2")
    settings = {"speculative_algorithm": "NEXTN", "speculative_draft_model_path": str(drafter)}
    runner = load(folder, max_total_tokens=400, max_running_requests=2, speculative_num_steps=2, **settings).runner
    assert sampled(runner, PROMPT, 40) == [40]
    nodes = runner.speculation.settings.num_draft_tokens
    tokens = sampled(runner, step_of([1], [5 + nodes], [nodes], 0, [], range(6, 6 + nodes)), 41)
    assert set(tokens) == {41} and 1 <= len(tokens) <= 3


def test_a_chunk_in_the_middle_samples_nothing(tmp_path):
    runner = load(make_tiny_gemma4(tmp_path, "moe_top2"), max_total_tokens=400, max_running_requests=2).runner
    step = step_of([1], [5], [5], 1, [7, 30, 9, 12, 4], range(1, 6))
    step.sampled = step.sampled[:0]
    forwarded = runner.forward(step)
    assert forwarded.logits is None and runner.sample(step, forwarded).result().next_ids == []


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
