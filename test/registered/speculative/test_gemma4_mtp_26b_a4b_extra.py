"""Gemma 4 26B-A4B with its MTP drafter on two GPUs: GSM8K score and accept length, as upstream's test of this name."""

import sys
from pathlib import Path

import pytest

from sglang.test import gsm8k_mtp
from sglang.test.ci.ci_register import register_cuda_ci
from sglang.test.eval_data import load

register_cuda_ci(est_time=720, stage="extra-a", runner_config="2-gpu-large")

TARGET, DRAFTER = "google/gemma-4-26B-A4B-it", "google/gemma-4-26B-A4B-it-assistant"
# Upstream's calibration: 0.445 with topk 1 and 0.440 with topk 3 in 20 runs each; its margin is 0.03.
SCORE, ACCEPT_LENGTH = 0.41, 1.5
START_SECONDS = 3 * 600.0
GSM8K = Path.home() / ".cache" / "sglang" / "gsm8k_test.jsonl"


def local_folder(name: str) -> str:
    """The checkpoint's folder in Hugging Face's cache; without it the test is skipped, nothing is downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return snapshot_download(name, local_files_only=True)
    except LocalEntryNotFoundError:
        pytest.skip(f"{name} is not in the Hugging Face cache of this machine")


@pytest.mark.parametrize("topk", [1, 3])
def test_gsm8k_mtp(topk: int):
    target, drafter = local_folder(TARGET), local_folder(DRAFTER)
    if not GSM8K.is_file():
        pytest.skip(f"{GSM8K} is missing: the test file of openai/grade-school-math, one JSON object a line")
    rows = load(GSM8K)[: gsm8k_mtp.NUM_SHOTS + gsm8k_mtp.NUM_QUESTIONS]
    flags = ["--model-path", target, "--attention-backend", "triton", "--mem-fraction-static", "0.55", "--tp-size", "2"]
    done = gsm8k_mtp.run(
        [*flags, *gsm8k_mtp.DETERMINISTIC, *gsm8k_mtp.draft_flags(topk, drafter)],
        rows[: gsm8k_mtp.NUM_SHOTS],
        rows[gsm8k_mtp.NUM_SHOTS :],
        START_SECONDS,
    )
    print(done)
    assert done.server_info["speculative_eagle_topk"] == topk and not done.server_info["disable_cuda_graph"]
    assert done.result.score.share >= SCORE
    assert done.accept_length >= ACCEPT_LENGTH


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q", "-s"]))
