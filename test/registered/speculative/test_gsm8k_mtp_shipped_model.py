"""The registered GSM8K test on the shipped model and its drafter: 200 problems, 5 worked examples, drafts on and off.
Two ranks, on a CPU or on two GPUs; one where there is one GPU. A CPU takes 16 of them, all of them weekly. Stronger
than a score: in batch-invariant mode drafts change no answer at all. Without the mode, which a CPU has no time for
here, score and accept length have to hold.

Calibration: docs/numerics.md. The score and every answer repeat; the accept length varies in its second place, since a
stop string is noticed a round earlier or later. Other machines add in another order, hence the margins: upstream's 0.03
of the score, 0.3 of the accept length.
"""

import sys
from functools import cache
from pathlib import Path

import pytest
import torch

import sglang
from sglang.test import gsm8k_mtp
from sglang.test.ci.ci_register import is_weekly, register_cpu_ci, register_cuda_ci
from sglang.test.compare_runs import compare, report
from sglang.test.engine_harness import DEVICE
from sglang.test.eval_data import load

register_cpu_ci(est_time=50, suite="weekly-test-cpu")
register_cuda_ci(est_time=120, stage="base-b", runner_config="1-gpu-large")
register_cuda_ci(est_time=120, stage="extra-a", runner_config="2-gpu-large")

DATA = Path(sglang.__file__).parent / "test" / "data"
SCORE = 1.0 - 0.03
ACCEPT_LENGTH = {1: 5.77 - 0.3, 3: 5.83 - 0.3}
START_SECONDS = 120.0
RANKS = 2 if DEVICE == "cpu" else min(2, torch.cuda.device_count())
WHOLE = DEVICE == "cuda" or is_weekly()
NUM_QUESTIONS = gsm8k_mtp.NUM_QUESTIONS if WHOLE else 16
MODES = [gsm8k_mtp.DETERMINISTIC] if DEVICE == "cpu" else [gsm8k_mtp.DETERMINISTIC, ()]
Runs = dict[int, gsm8k_mtp.MTPRun]  # by topk, 0 without drafts


def make_runs(mode: tuple[str, ...]) -> Runs:
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")  # a core for each rank
    shots, questions = load(DATA / "mini_gsm_few_shot.jsonl"), load(DATA / "mini_gsm_seen.jsonl")
    done = {}
    for topk in (0, 1, 3):
        flags = [*mode, "--tp-size", str(RANKS), *(gsm8k_mtp.draft_flags(topk) if topk else [])]
        done[topk] = gsm8k_mtp.run(flags, shots, questions[:NUM_QUESTIONS], START_SECONDS)
        print(*mode, done[topk])
    patch.undo()
    return done


@pytest.fixture(scope="module")
def runs():
    return cache(make_runs)


@pytest.mark.parametrize("topk", [1, 3])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "deterministic" if mode else "plain")
def test_gsm8k_mtp(runs, mode: tuple[str, ...], topk: int):
    done = runs(mode)[topk]
    assert done.server_info["speculative_eagle_topk"] == topk and done.server_info["tp_size"] == RANKS
    assert done.server_info["disable_cuda_graph"] == (DEVICE == "cpu")
    assert done.result.score.share >= SCORE
    assert done.accept_length >= ACCEPT_LENGTH[topk]


@pytest.mark.parametrize("topk", [1, 3])
def test_drafts_change_no_answer(runs, topk: int):
    by_topk = runs(gsm8k_mtp.DETERMINISTIC)
    comparison = compare(by_topk[0].result.answers, by_topk[topk].result.answers)
    assert not comparison.changed and not comparison.reworded, report(comparison, "plain", f"topk {topk}")
    tokens = [sum(answer.completion_tokens for answer in by_topk[k].result.answers) for k in (0, topk)]
    assert tokens[0] == tokens[1]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q", "-s"]))
