"""The norms between the qkv product and attention: transformers' modules one by one on a CPU; which launch."""

import sys

import pytest
import torch
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm

from sglang.srt.ops.attention.kv_slots import KVSlots
from sglang.srt.ops.norms import qkv_rms_norm as module
from sglang.srt.ops.norms.qkv_norm_rope import qkv_norm_rope
from sglang.srt.ops.norms.qkv_rms_norm import qkv_rms_norm, takes_per_head
from sglang.srt.ops.norms.rope import apply_rope_reference
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


@pytest.mark.parametrize("has_v", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tokens", [1, 11])
def test_with_the_turn_and_the_write_behind_it(tokens, dtype, has_v):
    """All heads at once have the bits of q, k and v one by one; so has q alone."""
    torch.manual_seed(1)
    q_weight, k_weight = gemma_norm(dtype).weight.data, gemma_norm(dtype).weight.data
    qkv = torch.randn(tokens, (HEADS + KV_HEADS * (1 + has_v)) * DIM).to(dtype)
    angles = torch.randn(tokens, DIM // 2).repeat(1, 2)
    turn = angles.cos().to(dtype), angles.sin().to(dtype)
    slots = torch.randperm(tokens + 2)[:tokens]
    kv = KVSlots(*torch.zeros(tokens + 2, 2, KV_HEADS, DIM, dtype=dtype).unbind(1), slots)
    got = qkv_norm_rope(qkv.clone(), q_weight, k_weight, HEADS, *turn, EPS, kv)
    q, k, v = qkv_rms_norm(qkv.clone(), q_weight, k_weight, HEADS, KV_HEADS, EPS)
    q, k = (apply_rope_reference(x, *turn) for x in (q, k))
    assert torch.equal(got, q) and torch.equal(kv.k_buffer[slots], k) and torch.equal(kv.v_buffer[slots], v)
    alone = qkv_norm_rope(qkv[:, : HEADS * DIM].clone(), q_weight, None, HEADS, *turn, EPS, None)
    assert torch.equal(alone, q)


def test_up_to_256_tokens_have_a_program_a_head(monkeypatch):
    assert [takes_per_head(n) for n in (1, 256, 257, 4096)] == [True, True, False, False]
    monkeypatch.setattr(module, "PER_HEAD_DISABLED", True)
    assert not takes_per_head(1)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
