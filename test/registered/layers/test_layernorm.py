"""RMSNorm, activations, embedding scale and softcap equal transformers' bit for bit, on ordinary and nasty inputs."""

import sys

import pytest
import torch
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm, Gemma4TextScaledWordEmbedding
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from sglang.srt.distributed.tensor_parallel import TensorParallel
from sglang.srt.layers.logits_processor import head_logits, softcap
from sglang.srt.layers.vocab_parallel_embedding import VocabEmbedding
from sglang.srt.ops.moe.router_norm import router_norm
from sglang.srt.ops.norms.activation import gelu_tanh_and_mul, silu_and_mul
from sglang.srt.ops.norms.residual_norms import MoeReaders, add_norm_moe
from sglang.srt.ops.norms.rms_norm import llama_rms_norm, rms_norm
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=4, suite="base-a-test-cpu")

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def normal(shape, dtype):
    return torch.randn(shape).to(dtype)


def signed_zeros(shape, dtype):
    return torch.randn(shape).sign().to(dtype) * 0.0


def denormals(shape, dtype):
    return torch.randn(shape).to(dtype) * torch.finfo(dtype).smallest_normal


def huge(shape, dtype):
    return (torch.randn(shape) * 1e4).to(dtype)


def mostly_zero(shape, dtype):
    return normal(shape, dtype) * (torch.rand(shape) < 0.02)


MAKERS = [normal, signed_zeros, denormals, huge, mostly_zero]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2816), (37, 64), (5, 16, 256), (3, 4, 512)])
def test_rms_norm_is_gemmas(shape, dtype, make):
    x, weight = make(shape, dtype), normal(shape[-1:], dtype)
    norm = Gemma4RMSNorm(shape[-1], eps=1e-6).to(dtype)
    norm.weight.data.copy_(weight)
    got = rms_norm(x, weight, 1e-6)
    assert got.dtype == dtype and torch.equal(got, norm(x))
    bare = Gemma4RMSNorm(shape[-1], eps=1e-6, with_scale=False)
    assert torch.equal(rms_norm(x, None, 1e-6), bare(x))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_readers_of_the_stream_get_what_norms_of_their_own_give(dtype, make):
    h, a = make((9, 256), dtype), normal((9, 256), dtype)
    weight, *weights = (normal((256,), dtype) for _ in range(4))
    got, inputs = add_norm_moe(h, a, weight, MoeReaders(*weights, 1 / 16), 1e-6)
    assert torch.equal(got, h + rms_norm(a, weight, 1e-6))
    want = [rms_norm(got, w, 1e-6) for w in weights[:2]] + [router_norm(got, weights[2], 1 / 16, 1e-6)]
    assert all(map(torch.equal, inputs, want))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_llama_rms_norm_is_llamas(dtype, make):
    x, weight = make((7, 64), dtype), normal((64,), dtype)
    norm = LlamaRMSNorm(64, eps=1e-5).to(dtype)
    norm.weight.data.copy_(weight)
    assert torch.equal(llama_rms_norm(x, weight, 1e-5), norm(x))


def test_the_two_norms_differ():
    """One rounding against two: mistaking one for the other must not go unseen."""
    x, weight = normal((64, 256), torch.bfloat16), normal((256,), torch.bfloat16)
    assert not torch.equal(rms_norm(x, weight, 1e-6), llama_rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])  # torch's float32 gelu depends on the strides
def test_gated_activations_round_twice(dtype, make):
    gate, up = make((9, 40), dtype), normal((9, 40), dtype)
    gate_up = torch.cat((gate, up), dim=-1)
    want = torch.nn.functional.gelu(gate, approximate="tanh") * up
    assert torch.equal(gelu_tanh_and_mul(gate_up), want)
    assert torch.equal(silu_and_mul(gate_up), torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize(("hidden", "rounded"), [(1536, 39.25), (2560, 50.5), (2816, 53.0), (3840, 62.0), (5376, 73.5)])
def test_embedding_scale_is_rounded_first(hidden, rounded):
    torch.set_default_dtype(torch.bfloat16)
    try:
        embedding = VocabEmbedding(30, hidden, scale=hidden**0.5)
        theirs = Gemma4TextScaledWordEmbedding(30, hidden, 0, embed_scale=hidden**0.5).to(torch.bfloat16)
    finally:
        torch.set_default_dtype(torch.float32)
    assert embedding.scale == rounded
    embedding.weight.normal_()
    theirs.weight.data.copy_(embedding.weight)
    ids = torch.randint(30, (50,))
    assert torch.equal(embedding(ids), theirs(ids))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_softcap_rounds_every_step(dtype, make):
    logits = make((5, 300), dtype)
    want = torch.tanh(logits / 30.0) * 30.0
    assert torch.equal(softcap(logits, 30.0), want)
    assert softcap(logits, 30.0).abs().max() <= 30


def test_head_without_cap():
    hidden, weight = torch.randn(3, 8), torch.randn(20, 8) * 100
    assert torch.equal(head_logits(hidden, weight, None, TensorParallel()), hidden @ weight.T)
    assert head_logits(hidden, weight, 30.0, TensorParallel()).abs().max() <= 30


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
