"""Gemma 4 against transformers, every text variant: logits in float32, greedy tokens in bfloat16, over paged KV.

Prompts are longer than the window, chunks shorter; the harness poisons given-back slots. The negative controls show
that the bound is tight enough to see each of the mistakes this architecture invites.
"""

import dataclasses
import sys
from functools import partial

import pytest
import torch

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.model_loader.loader import load_model
from sglang.srt.ops.products import widened
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.paged_harness import PagedHarness
from sglang.test.tiny_models import GEMMA4_VARIANTS, VOCAB, load_oracle, make_tiny_gemma4

register_cpu_ci(est_time=12, suite="base-a-test-cpu")

FP32_BOUND = 1e-5  # largest error over the reference's largest logit
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(6, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoint folder of a variant and dtype, made once."""
    made = {}

    def folder(variant: str, dtype: torch.dtype) -> str:
        if (variant, dtype) not in made:
            made[variant, dtype] = str(make_tiny_gemma4(tmp_path_factory.mktemp(variant), variant, dtype))
        return made[variant, dtype]

    return folder


@pytest.fixture(scope="module")
def reference(folders):
    """float32 logits of transformers for a variant and a prompt."""
    oracles = {}

    def logits(variant: str, ids: list[int]) -> torch.Tensor:
        if variant not in oracles:
            oracles[variant] = load_oracle(folders(variant, torch.float32), torch.float32)
        return oracles[variant](torch.tensor([ids])).logits[0]

    return logits


def load(path: str) -> tuple[torch.nn.Module, ModelConfig]:
    config = ModelConfig.load(path)
    return load_model(config, "auto", CPU), config


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert torch.isfinite(got).all()
    return ((got - want).abs().max() / want.abs().max()).item()


@pytest.mark.parametrize("variant", GEMMA4_VARIANTS)
def test_float32_logits(variant, folders, reference):
    ids = prompt(50, seed=1)
    want = reference(variant, ids)
    model, config = load(folders(variant, torch.float32))
    assert config.sliding_window < len(ids)
    for chunk in (50, 7, 4, 1):  # 4 is below every window; 1 is decoding
        harness = PagedHarness(model, config)
        got = torch.cat([harness.step({3: ids[i : i + chunk]})[3] for i in range(0, len(ids), chunk)])
        assert error(got, want) < FP32_BOUND, chunk


@pytest.mark.parametrize("variant", GEMMA4_VARIANTS)
def test_float32_mixed_batches(variant, folders, reference):
    """Prefill chunks and decodes of requests of very different lengths in one step."""
    ids = {0: prompt(60, 2), 1: prompt(3, 3), 2: prompt(33, 4), 5: prompt(20, 5)}
    model, config = load(folders(variant, torch.float32))
    harness = PagedHarness(model, config)
    steps = [  # row -> how many of its tokens
        ({0: 40, 1: 2}, 2),
        ({2: 9, 0: 1, 1: 1}, 1),
        ({5: 19, 2: 6, 0: 1}, 2),
        ({0: 1, 5: 1}, 0),
        ({2: 1, 0: 17}, 2),  # a chunk of one token is a prefill like any other
        ({2: 17}, 1),
    ]
    got = {row: [] for row in ids}
    for rows, num_extends in steps:
        part = {row: ids[row][harness.lengths[row] : harness.lengths[row] + n] for row, n in rows.items()}
        for row, logits in harness.step(part, num_extends).items():
            got[row].append(logits)
    for row, tokens in ids.items():
        assert error(torch.cat(got[row]), reference(variant, tokens)) < FP32_BOUND, row


@pytest.mark.parametrize("variant", GEMMA4_VARIANTS)
def test_bfloat16_greedy_tokens(variant, folders, monkeypatch):
    monkeypatch.setattr(widened, "has_instructions", lambda dtype: True)  # products as torch has them for both
    path, new = folders(variant, torch.bfloat16), 16
    oracle = load_oracle(path, torch.bfloat16)
    model, config = load(path)
    assert config.torch_dtype == torch.bfloat16
    produced = set()
    for seed in range(4):
        ids = prompt(12 + 9 * seed, seed=50 + seed)
        want = oracle.generate(
            torch.tensor([ids]), max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(ids) :].tolist()
        harness = PagedHarness(model, config)
        got = [harness.step({0: ids})[0][-1].argmax().item()]
        while len(got) < new:
            got.append(harness.step({0: got[-1:]})[0][-1].argmax().item())
        assert got == want
        produced.update(got)
    assert len(produced) > new  # a model that only repeats itself would prove little


@pytest.mark.parametrize("variant", GEMMA4_VARIANTS)
def test_bfloat16_with_widened_products_is_as_near_as_transformers(variant, folders, monkeypatch):
    """Products that a CPU without instructions for bfloat16 gets: on average no further from float32 than transformers'
    bfloat16. Most logits have the same bits, since these depths are small; the largest error is a router's near tie."""
    path, ids, calls = folders(variant, torch.bfloat16), prompt(40, seed=7), []
    product = widened.linear
    monkeypatch.setattr(widened, "has_instructions", lambda dtype: dtype == torch.float32)
    monkeypatch.setattr(widened, "linear", lambda *args: calls.append(args) or product(*args))
    model, config = load(path)
    got = PagedHarness(model, config).step({0: ids})[0]
    assert len(calls) > 4 * len(config.text.layers)  # else transformers' products are compared with themselves
    oracles = (load_oracle(path, dtype) for dtype in (torch.float32, config.torch_dtype))
    exact, theirs = (oracle(torch.tensor([ids])).logits[0] for oracle in oracles)
    assert (got - exact).abs().mean() <= 1.1 * (theirs - exact).abs().mean()


def one_plus_weight(model):
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.weight += 1


def scale_by_head_dim(model):
    for layer in model.model.layers:
        layer.self_attn.attn.scale = layer.self_attn.attn.head_dim**-0.5


def window_plus_one(model):
    for layer in model.model.layers:
        if layer.self_attn.attn.sliding_window is not None:
            layer.self_attn.attn.sliding_window += 1


def exponent_over_rotated_dims(model):
    rotary = model.model.rotary["full_attention"]
    dim = 2 * rotary.cos.shape[1]
    count = dim // 8
    inv_freq = torch.zeros(dim // 2)
    inv_freq[:count] = 1e6 ** (-torch.arange(count) / count)
    angles = torch.arange(rotary.cos.shape[0])[:, None] * inv_freq
    rotary.cos, rotary.sin = angles.cos(), angles.sin()


def no_per_expert_scale(model):
    for layer in model.model.layers:
        layer.router.per_expert_scale.fill_(1)


def router_reads_normed_input(model):
    for layer in model.model.layers:
        layer.router.register_forward_pre_hook(
            lambda router, args, norm=layer.pre_feedforward_layernorm_2: (norm(args[0]),)
        )


def no_layer_scalar(model):
    for layer in model.model.layers:
        layer.layer_scalar.fill_(1)


def no_softcap(model):
    model.config = dataclasses.replace(model.config, final_logit_softcap=None)


def no_embedding_scale(model):
    model.model.embed_tokens.scale = 1.0


def k_normed_before_v(model):
    """V made of the normed k: what reusing the k slice after k_norm would give."""

    def scale_v(attn, args, weight):
        kv = args[-1].kv_slots(attn.kv_layer)
        kv.v_buffer[kv.slots] *= weight

    for layer in model.model.layers:
        attention = layer.self_attn
        if "v_proj" not in attention.qkv_proj.outputs:
            attention.attn.register_forward_pre_hook(partial(scale_v, weight=attention.k_norm.weight))


def wrong_donor(model):
    """The shared sliding layers read another sliding layer's KV than the last."""
    for layer in model.model.layers:
        attn = layer.self_attn.attn
        if attn.kv_layer == 3 and not hasattr(layer.self_attn, "qkv_proj"):
            attn.kv_layer = 2


def no_per_layer_inputs(model):
    for layer in model.model.layers:
        layer.has_ple = False


@pytest.mark.parametrize(
    ("variant", "breakage"),
    [
        ("moe_top2", one_plus_weight),
        ("moe_top2", scale_by_head_dim),
        ("moe_top2", window_plus_one),
        ("moe_top2", exponent_over_rotated_dims),
        ("moe_top2", no_per_expert_scale),
        ("moe_top2", router_reads_normed_input),
        ("moe_top2", no_layer_scalar),
        ("moe_top2", no_softcap),
        ("moe_top2", no_embedding_scale),
        ("dense_k_eq_v", k_normed_before_v),
        ("ple_shared_double_wide", wrong_donor),
        ("ple_shared_double_wide", no_per_layer_inputs),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_mistake_is_seen(variant, breakage, folders, reference):
    """Each mistake moves the logits by a hundred times the bound at least."""
    ids = prompt(50, seed=1)
    model, config = load(folders(variant, torch.float32))
    breakage(model)
    got = PagedHarness(model, config).step({0: ids})[0]
    assert error(got, reference(variant, ids)) > 100 * FP32_BOUND


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
