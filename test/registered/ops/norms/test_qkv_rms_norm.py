"""The norms between the qkv product and attention: transformers' modules one by one on a CPU; which launch."""

import sys

import pytest
import torch
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm

from sglang.srt.ops.norms import qkv_rms_norm as module
from sglang.srt.ops.norms.qkv_rms_norm import qkv_rms_norm, takes_per_head
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=6, suite="base-a-test-cpu")

HEADS, KV_HEADS, DIM, EPS = 4, 2, 512, 1e-6


def gemma_norm(dtype: torch.dtype) -> Gemma4RMSNorm:
    norm = Gemma4RMSNorm(DIM).to(dtype)
    norm.weight.data.uniform_(0.5, 1.5)
    return norm


@pytest.mark.parametrize("has_v", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_is_transformers_and_works_in_place(dtype, has_v):
    """Without v rows, V is the raw K without K's weight."""
    torch.manual_seed(0)
    q_norm, k_norm = gemma_norm(dtype), gemma_norm(dtype)
    qkv = torch.randn(11, (HEADS + KV_HEADS * (1 + has_v)) * DIM).to(dtype)
    raw = qkv.clone().view(11, -1, DIM)
    raw_k = raw[:, HEADS : HEADS + KV_HEADS]
    raw_v = raw[:, HEADS + KV_HEADS :] if has_v else raw_k
    q, k, v = qkv_rms_norm(qkv, q_norm.weight, k_norm.weight, HEADS, KV_HEADS, EPS)
    assert torch.equal(q, q_norm(raw[:, :HEADS]))
    assert torch.equal(k, k_norm(raw_k))
    assert torch.equal(v, Gemma4RMSNorm(DIM, with_scale=False)(raw_v))
    inside = [q, k, v] if has_v else [q, k]
    assert all(part.untyped_storage().data_ptr() == qkv.untyped_storage().data_ptr() for part in inside)
    assert torch.equal(qkv.view(11, -1, DIM), torch.cat(inside, dim=1))


def test_a_layer_without_own_kv_has_q_alone():
    q_norm = gemma_norm(torch.bfloat16)
    raw = torch.randn(5, HEADS * DIM).bfloat16()
    q, k, v = qkv_rms_norm(raw.clone(), q_norm.weight, None, HEADS, 0, EPS)
    assert k is None and v is None and torch.equal(q, q_norm(raw.view(5, HEADS, DIM)))


def test_up_to_256_tokens_have_a_program_a_head(monkeypatch):
    assert [takes_per_head(n) for n in (1, 256, 257, 4096)] == [True, True, False, False]
    monkeypatch.setattr(module, "PER_HEAD_DISABLED", True)
    assert not takes_per_head(1)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
