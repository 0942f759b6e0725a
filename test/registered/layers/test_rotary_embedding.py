"""Rotary tables and rotation equal transformers' bit for bit, at the real head sizes and out to the last position."""

import sys

import pytest
import torch
from transformers import Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import (
    Gemma4TextRotaryEmbedding,
    apply_rotary_pos_emb,
)

from sglang.srt.configs.gemma4 import DEFAULT_ROPE
from sglang.srt.configs.rope import RopeConfig
from sglang.srt.layers.rotary_embedding import RotaryEmbedding, inverse_frequencies
from sglang.srt.ops.norms.rope import apply_rope
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=6, suite="base-a-test-cpu")

KINDS = {"sliding_attention": 256, "full_attention": 512}
MAX_POSITION = 20_000  # past the 8192 positions a block of the table holds


def rotary(kind: str, dtype: torch.dtype) -> RotaryEmbedding:
    torch.set_default_dtype(dtype)
    try:
        return RotaryEmbedding(RopeConfig.from_dict(DEFAULT_ROPE[kind]), KINDS[kind], MAX_POSITION)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_gemma_tables_and_rotation(kind, dtype):
    torch.manual_seed(0)
    theirs = Gemma4TextRotaryEmbedding(Gemma4TextConfig(head_dim=256, global_head_dim=512, num_hidden_layers=6))
    positions = torch.cat((torch.arange(40), torch.tensor([8191, 8192, 8193, MAX_POSITION - 1])))
    x = torch.randn(len(positions), 3, KINDS[kind]).to(dtype)
    want_cos, want_sin = theirs(x, positions[None], kind)
    cos, sin = rotary(kind, dtype)(positions)
    assert cos.dtype == sin.dtype == dtype
    assert torch.equal(cos, want_cos[0]) and torch.equal(sin, want_sin[0])
    want = apply_rotary_pos_emb(x[None], want_cos, want_sin, unsqueeze_dim=2)[0]
    assert torch.equal(apply_rope(x, cos, sin), want)


def test_proportional_turns_a_quarter_of_each_half():
    inv_freq = inverse_frequencies(RopeConfig.from_dict(DEFAULT_ROPE["full_attention"]), 512)
    assert inv_freq.dtype == torch.float32
    assert (inv_freq[:64] > 0).all() and (inv_freq[64:] == 0).all() and len(inv_freq) == 256
    assert inv_freq[32].item() == pytest.approx(1e6 ** (-64 / 512))  # over 512, not over the 128 turned dims
    x = torch.randn(1, 1, 512)
    cos, sin = rotary("full_attention", torch.float32)(torch.tensor([1000]))
    moved = (apply_rope(x, cos, sin) != x)[0, 0].nonzero().flatten().tolist()
    assert set(moved) <= {*range(64), *range(256, 320)} and len(moved) > 120


def test_frequencies_stay_float32_in_a_bfloat16_model():
    """Rounded frequencies would be off by whole turns at far positions."""
    coarse, fine = (
        rotary("sliding_attention", dtype)(torch.tensor([19_999]))[0] for dtype in (torch.bfloat16, torch.float32)
    )
    assert torch.equal(coarse, fine.to(torch.bfloat16))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
