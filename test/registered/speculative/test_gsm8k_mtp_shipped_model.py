"""The registered GSM8K test on the shipped model and its drafter: 200 problems, 5 worked examples, drafts on and off.
Two ranks on a CPU, one GPU where there is one. Stronger than a score: drafts change no answer at all.

Calibration: docs/numerics.md. The score and every answer repeat; the accept length varies in its second place, since a
stop string is noticed a round earlier or later. Other machines add in another order, hence the margins: upstream's 0.03
of the score, 0.3 of the accept length.
"""

import sys
from pathlib import Path

import pytest

import sglang
from sglang.test import gsm8k_mtp
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci
from sglang.test.compare_runs import compare, report
from sglang.test.engine_harness import DEVICE
from sglang.test.eval_data import load

register_cpu_ci(est_time=300, suite="base-b-test-cpu")
register_cuda_ci(est_time=120, stage="base-b", runner_config="1-gpu-large")

DATA = Path(sglang.__file__).parent / "test" / "data"
SCORE = 0.995 - 0.03
ACCEPT_LENGTH = {1: 5.08 - 0.3, 3: 5.47 - 0.3}
START_SECONDS = 120.0
RANKS = 2 if DEVICE == "cpu" else 1


@pytest.fixture(scope="module")
def runs() -> dict[int, gsm8k_mtp.MTPRun]:
    """By topk, 0 without drafts."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")  # a core for each rank
    shots, questions = load(DATA / "mini_gsm_few_shot.jsonl"), load(DATA / "mini_gsm_seen.jsonl")
    done = {}
    for topk in (0, 1, 3):
        flags = ["--tp-size", str(RANKS), *(gsm8k_mtp.draft_flags(topk) if topk else [])]
        done[topk] = gsm8k_mtp.run(flags, shots, questions[: gsm8k_mtp.NUM_QUESTIONS], START_SECONDS)
        print(done[topk])
    patch.undo()
    return done


@pytest.mark.parametrize("topk", [1, 3])
def test_gsm8k_mtp(runs, topk: int):
    done = runs[topk]
    assert done.server_info["speculative_eagle_topk"] == topk and done.server_info["tp_size"] == RANKS
    assert done.server_info["disable_cuda_graph"] == (DEVICE == "cpu")
    assert done.result.score.share >= SCORE
    assert done.accept_length >= ACCEPT_LENGTH[topk]


@pytest.mark.parametrize("topk", [1, 3])
def test_drafts_change_no_answer(runs, topk: int):
    comparison = compare(runs[0].result.answers, runs[topk].result.answers)
    assert not comparison.changed and not comparison.reworded, report(comparison, "plain", f"topk {topk}")
    tokens = [sum(answer.completion_tokens for answer in runs[k].result.answers) for k in (0, topk)]
    assert tokens[0] == tokens[1]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q", "-s"]))
