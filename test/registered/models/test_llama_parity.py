"""The plain dense family (Llama, Llama 3's rotary scaling, Qwen2 with a sliding window, Qwen3) against transformers."""

import sys

import pytest
import torch

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_loader.loader import load_model
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.paged_harness import PagedHarness
from sglang.test.tiny_models import LLAMA_VARIANTS, VOCAB, load_oracle, make_tiny_llama

register_cpu_ci(est_time=5, suite="base-a-test-cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(6, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("variant", LLAMA_VARIANTS)
def test_float32_logits(variant, tied, tmp_path):
    make_tiny_llama(tmp_path, variant, torch.float32, tied=tied)
    ids = prompt(50, seed=1)
    want = load_oracle(tmp_path, torch.float32)(torch.tensor([ids])).logits[0]
    config = ModelConfig.load(str(tmp_path))
    model = load_model(config, "auto", torch.device("cpu"))
    for chunk in (50, 7, 1):
        harness = PagedHarness(model, config)
        got = torch.cat([harness.step({3: ids[i : i + chunk]})[3] for i in range(0, len(ids), chunk)])
        assert (got - want).abs().max() / want.abs().max() < 1e-5, chunk


@pytest.mark.parametrize("variant", LLAMA_VARIANTS)
def test_bfloat16_greedy_tokens(variant, tmp_path):
    make_tiny_llama(tmp_path, variant, torch.bfloat16)
    oracle = load_oracle(tmp_path, torch.bfloat16)
    config = ModelConfig.load(str(tmp_path))
    model = load_model(config, "auto", torch.device("cpu"))
    for seed in range(3):
        ids = prompt(12 + 9 * seed, seed)
        want = oracle.generate(
            torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(ids) :].tolist()
        harness = PagedHarness(model, config)
        got = [harness.step({0: ids})[0][-1].argmax().item()]
        while len(got) < len(want):
            got.append(harness.step({0: got[-1:]})[0][-1].argmax().item())
        assert got == want


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
