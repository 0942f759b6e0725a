"""The drift meter on the shipped model: it sees what naive router fusions change, and nothing between the reference and
the kernels. On a CPU those are interpreted, so there the tokens are few."""

import json
import sys

import sglang.test.triton_testing

# isort: split

import pytest
import torch
from transformers import Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRouter

from sglang.assets import shipped_drafter_path, shipped_model_path
from sglang.debug import drift_report, routing_drift
from sglang.debug.drift_runs import LoadedModel, first_difference, generate, teacher_forced
from sglang.debug.router_variants import parse_variant, routed_by, routers
from sglang.debug.routing_record import Change, compare_choices
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.layers.moe.router import Router
from sglang.srt.model_loader.loader import load_model
from sglang.srt.utils import triton_runtime
from sglang.test import naive_router
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci
from sglang.test.tiny_models import make_tiny_llama

register_cpu_ci(est_time=18, suite="base-a-test-cpu")
register_cuda_ci(est_time=60, stage="base-b", runner_config="1-gpu-large")

DEVICE = sglang.test.triton_testing.DEVICE
NAIVE = naive_router.__file__
FOLDED, TOPK_FIRST = f"{NAIVE}:folded_norm,eager", f"eager,{NAIVE}:topk_before_softmax"


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    config = ModelConfig.load(str(shipped_model_path()))
    return LoadedModel(load_model(config, "auto", torch.device(DEVICE)), config, DEVICE)


@pytest.fixture(scope="module")
def chats() -> list[list[int]]:
    args = routing_drift.make_parser().parse_args(["--num-prompts", "12"])
    return routing_drift.make_prompts(args, str(shipped_model_path()), 2048).ids


@pytest.mark.parametrize("naive", [FOLDED, TOPK_FIRST], ids=["folded norm", "top-k first"])
def test_naive_fusions_are_seen(loaded, chats, naive):
    """A layer's own routers change their minds, and later layers hear of it."""
    layers = teacher_forced(loaded, parse_variant("eager"), parse_variant(naive), chats)
    assert len(layers) == 6 and all(layer.tokens == sum(map(len, chats)) for layer in layers)
    assert layers[0].change == layers[0].same_input  # nothing comes before it
    assert sum(layer.same_input.set_changed for layer in layers) > 5
    assert sum(layer.same_input.order_changed for layer in layers) > 5
    assert layers[5].change.weights_changed > 0.9 * layers[5].tokens
    assert max(layer.change.largest_weight_difference for layer in layers) > 0.05
    assert all(0 <= layer.margins[0.01] <= layer.margins[0.5] for layer in layers)


def test_kernels_change_nothing(loaded, chats):
    eager, fused = parse_variant("eager"), parse_variant("fused")
    texts, new = (chats, 64) if DEVICE == "cuda" else ([chats[0][:14]], 2)
    answers = generate(loaded, eager, texts, new, 12)
    assert generate(loaded, fused, texts, new, 12) == answers
    nothing = Change(0, 0, 0, 0.0)
    for layer in teacher_forced(loaded, eager, fused, texts):
        assert layer.change == layer.same_input == nothing and layer.tokens == sum(map(len, texts))


def test_transformers_variant_is_transformers():
    torch.manual_seed(0)
    config = Gemma4TextConfig(
        hidden_size=256, enable_moe_block=True, num_experts=16, top_k_experts=4, moe_intermediate_size=8
    )
    theirs = Gemma4TextRouter(config).to(torch.bfloat16).requires_grad_(False)
    theirs.scale.uniform_(0.5, 1.5)
    theirs.per_expert_scale.uniform_(0.5, 1.5)
    theirs.proj.weight.normal_(0, 1)
    ours = Router(256, 16, 4, config.rms_norm_eps).to(torch.bfloat16)
    ours.load_state_dict(theirs.state_dict())
    h = torch.randn(500, 256).to(torch.bfloat16)
    weights, ids = parse_variant("transformers").route(ours, h)
    _, want_weights, want_ids = theirs(h)
    assert torch.equal(weights, want_weights) and torch.equal(ids, want_ids)


def test_a_variant_is_gone_afterwards(loaded):
    router, *_ = routers(loaded.model).values()
    interpreted = triton_runtime.INTERPRETED
    with pytest.raises(RuntimeError, match="stop"), routed_by(loaded.model, parse_variant("transformers")):
        assert router.forward.func.__self__.name == "transformers" and not triton_runtime.INTERPRETED
        raise RuntimeError("stop")
    assert router.forward.__func__ is Router.forward and triton_runtime.INTERPRETED == interpreted


def test_compare_choices():
    """Token 0: the same; 1: another order; 2: another expert; 3: another weight."""
    ids_a = torch.tensor([[0, 1], [0, 1], [0, 1], [2, 3]])
    ids_b = torch.tensor([[0, 1], [1, 0], [0, 2], [2, 3]])
    weights_a = torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.75, 0.25], [0.6, 0.4]])
    weights_b = torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.75, 0.25], [0.625, 0.375]])
    assert compare_choices((weights_a, ids_a), (weights_b, ids_b), 4) == Change(1, 1, 2, 0.25)


def test_first_difference():
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


def run(capsys, *flags: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        routing_drift.main([*flags, "--device", DEVICE])
    out = capsys.readouterr()
    return end.value.code, out.out + out.err


def test_command(capsys, tmp_path):
    output, chart = tmp_path / "drift.json", tmp_path / "drift.png"
    flags = ["--num-prompts", "3", "--max-new-tokens", "12", "--output", str(output)]
    flags += ["--speculative-draft-model-path", str(shipped_drafter_path())]
    drawn = ["--chart", str(chart)] if drift_report.can_draw() else []
    code, text = run(capsys, "--b", FOLDED, *flags, *drawn, "--fail-if-changed")
    result = json.loads(output.read_text())
    assert code == 1 and result["prompts"] == 3 and result["output_tokens"] == 36
    assert len(result["layers"]) == 6 and result["scores"]["n"] == 3 and 0 <= result["scores"]["p"] <= 1
    assert all(1.5 < length <= 6 for length in result["accept_lengths"])
    assert f"Accept length of drafts: A {result['accept_lengths'][0]:.3f}, B " in text
    assert "| 5 | " in text and "McNemar's exact p" in text and "Free-running: " in text
    assert chart.exists() == bool(drawn)


def test_nothing_changed_between_equals(capsys, tmp_path):
    output = tmp_path / "drift.json"
    flags = ["--random-input-len", "20", "--num-prompts", "2", "--max-new-tokens", "3", "--output", str(output)]
    code, text = run(capsys, "--b", "eager", *flags, "--fail-if-changed")
    result = json.loads(output.read_text())
    assert code == 0 and "scores" not in text and result["scores"] is None and result["first_differences"] == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--b", "fast"], "'fast' is no way of routing"),
        (["--b", "eager,fused,eager"], "is no way of routing"),
        (["--b", "eager,nothing.py:f"], "names no function"),
        (["--b", f"{NAIVE}:nothing,eager"], "has no function 'nothing'"),
        (["--b", "eager", "--num-prompts", "0"], "must be at least 1"),
        (["--b", "eager", "--split", "none"], "--split none: give one of"),
        (["--b", "eager", "--split", "seen", "--random-input-len", "4"], "prompts that are no questions"),
        (["--b", "eager", "--output", "/nowhere/x.json"], "there is no folder /nowhere"),
        (["--b", "eager", "--model-path", "/nowhere"], "is not a folder"),
        (
            [
                "--b",
                "eager",
                "--speculative-draft-model-path",
                "/nowhere",
                "--num-prompts",
                "1",
                "--max-new-tokens",
                "1",
            ],
            "'/nowhere' is not a folder",
        ),
        (["--b", "eager", "--max-new-tokens", "5000", "--num-prompts", "1"], "the model takes 4096"),
    ],
)
def test_wrong_flags_are_one_line(capsys, flags, message):
    code, text = run(capsys, *flags)
    assert code == 2 and message in text.splitlines()[-1]


def test_a_model_without_a_router(capsys, tmp_path):
    make_tiny_llama(tmp_path)
    code, text = run(capsys, "--b", "eager", "--model-path", str(tmp_path), "--random-input-len", "4")
    assert code == 2 and "this model has no expert router" in text.splitlines()[-1]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
