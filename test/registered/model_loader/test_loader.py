"""Loading: real folder layouts, every element filled, and damaged or hostile folders refused with a clear message."""

import json
import logging
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_loader.loader import load_model
from sglang.srt.model_loader.weight_map import checkpoint_views
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.tiny_models import GEMMA4_VARIANTS, make_tiny_gemma4, make_tiny_llama

register_cpu_ci(est_time=8, suite="base-a-test-cpu")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    make_tiny_gemma4(root / "moe", "moe_top2")
    make_tiny_gemma4(root / "ple", "ple_shared_double_wide")
    make_tiny_llama(root / "llama", "qwen2")
    return root


@pytest.fixture
def moe(originals, tmp_path) -> Path:
    return Path(shutil.copytree(originals / "moe", tmp_path / "m"))


@pytest.fixture
def ple(originals, tmp_path) -> Path:
    return Path(shutil.copytree(originals / "ple", tmp_path / "m"))


def load(folder: Path, load_format: str = "auto", **override) -> torch.nn.Module:
    return load_model(ModelConfig.load(str(folder), json_override=override), load_format, CPU)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """A copy of the file's tensors: the originals are mapped from the file that a test then rewrites."""
    return {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}


def save(folder: Path, weights: dict[str, torch.Tensor], name: str = "model.safetensors") -> None:
    save_file({key: tensor.clone() for key, tensor in weights.items()}, folder / name)


def write_index(folder: Path, weight_map: dict) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)  # it would be read, and the index not
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return checkpoint_views(model)


def assert_same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    assert state(a).keys() == state(b).keys()
    for name, tensor in state(a).items():
        assert torch.equal(tensor, state(b)[name]), name


def test_values_are_the_files(moe):
    want = tensors(moe)
    model = load(moe)
    assert state(model).keys() == want.keys()
    for name, tensor in state(model).items():
        assert torch.equal(tensor, want[name]), name
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training


@pytest.mark.parametrize("variant", GEMMA4_VARIANTS)
def test_views_cover_every_element_once(variant, tmp_path):
    model = load(make_tiny_gemma4(tmp_path, variant), "dummy")
    derived = {name for name, _ in model.named_buffers() if name.endswith((".cos", ".sin"))}
    stored = [t for name, t in (*model.named_parameters(), *model.named_buffers()) if name not in derived]
    for tensor in stored:
        tensor.zero_()
    for view in checkpoint_views(model).values():
        view.add_(1)
    assert all((tensor == 1).all() for tensor in stored)


def test_sharded(moe):
    weights, want = tensors(moe), load(moe)
    names = sorted(weights)
    shards = {"a-00001-of-00002.safetensors": names[::2], "a-00002-of-00002.safetensors": names[1::2]}
    for shard, part in shards.items():
        save(moe, {name: weights[name] for name in part}, shard)
    write_index(moe, {name: shard for shard, part in shards.items() for name in part})
    assert_same(load(moe), want)


def test_multimodal_prefix_and_towers(ple, caplog):
    """The published files' prefix; towers skipped and counted; K and V of layers that share another's ignored."""
    want = load(ple)
    weights = {name.replace("model.", "model.language_model.", 1): t for name, t in tensors(ple).items()}
    extra = torch.zeros(3, 5)
    for name in ("vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight", "vision_tower.std_bias",
                 "embed_vision.embedding_projection.weight", "audio_tower.x", "embed_audio.y"):  # fmt: skip
        weights[f"model.{name}"] = extra
    shared = [layer.index for layer in want.config.layers if not layer.owns_kv]
    for i in shared:
        for name in ("k_proj.weight", "v_proj.weight", "k_norm.weight"):
            weights[f"model.language_model.layers.{i}.self_attn.{name}"] = extra
    weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    save(ple, weights)
    raw = json.loads((ple / "config.json").read_text())
    wrapped = {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "text_config": raw}
    (ple / "config.json").write_text(json.dumps(wrapped))
    with caplog.at_level(logging.INFO):
        assert_same(load(ple), want)
    assert f"skipped 5 vision and audio tensors, ignored {3 * len(shared) + 1} unused ones" in caplog.text


def test_float32_file_into_bfloat16_model(moe):
    want = load(moe)
    save(moe, {name: tensor.float() for name, tensor in tensors(moe).items()})
    assert_same(load(moe), want)


def test_fused_biases(originals):
    weights = load_file(originals / "llama" / "model.safetensors")
    got = load(originals / "llama").model.layers[1].self_attn.qkv_proj.bias
    assert torch.equal(got, torch.cat([weights[f"model.layers.1.self_attn.{n}_proj.bias"] for n in "qkv"]))


def test_dummy(moe):
    """normal(0, 0.02), norms and scales 1, nothing read; the rotary tables are still computed."""
    (moe / "model.safetensors").unlink()
    model = load(moe, "dummy")
    assert_same(model, load(moe, "dummy"))
    gate_up = model.model.layers[0].experts.gate_up_proj.float()
    assert gate_up.std().item() == pytest.approx(0.02, rel=0.05)
    assert abs(gate_up.mean().item()) < 0.001
    for name, tensor in state(model).items():
        if tensor.dim() == 1:
            assert (tensor == 1).all(), name
    assert model.model.rotary["full_attention"].cos[1, 0].item() == pytest.approx(math.cos(1), abs=0.005)


def expect_error(folder: Path, *parts: str, **override) -> None:
    with pytest.raises(ValueError) as caught:
        load(folder, **override)
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    assert "\n" not in message
    assert len(message) < 4000


def test_missing_misshapen_and_unexpected_in_one_error(moe):
    weights = tensors(moe)
    del weights["model.layers.2.layer_scalar"]
    del weights["model.layers.1.self_attn.v_proj.weight"]
    weights["model.norm.weight"] = torch.ones(65)
    weights["model.layers.0.mlp.extra.weight"] = torch.ones(2, 2)
    weights["model.layers.0.router.scale"] = torch.ones(64, dtype=torch.int32)
    save(moe, weights)
    expect_error(
        moe,
        "(5 tensors)",
        "missing model.layers.2.layer_scalar [1]",
        "missing model.layers.1.self_attn.v_proj.weight [32, 64]",
        "model.norm.weight has shape [65], expected [64]",
        "unexpected model.layers.0.mlp.extra.weight [2, 2]",
        "model.layers.0.router.scale has type I32, which is not supported",
    )


def test_config_that_disagrees_lists_ten_and_counts_the_rest(moe):
    with pytest.raises(ValueError, match="has shape") as caught:
        load(moe, intermediate_size=104, num_experts=9)
    wrong = 4 * 3 + 4 * 4  # a layer: gate, up, down; router's proj and per-expert scale, two stacks of experts
    assert f"({wrong} tensors)" in str(caught.value)
    assert str(caught.value).count("has shape") == 10
    assert str(caught.value).endswith(f" ... and {wrong - 10} more")


def test_sizes_no_product_takes_are_told_at_load(moe):
    expect_error(moe, "experts of 64 x 20", "multiples of 8", moe_intermediate_size=20)
    expect_error(moe, "head_dim 15 is odd", head_dim=15)


def test_absurd_sizes_are_refused_before_memory_is_taken(moe):
    expect_error(moe, "has shape", hidden_size=1 << 40)


def test_name_given_twice(moe):
    weights = tensors(moe)
    weights["model.language_model.norm.weight"] = weights["model.norm.weight"].clone()
    save(moe, weights)
    expect_error(moe, "model.norm.weight and model.language_model.norm.weight are both model.norm.weight")


def test_tensor_in_two_shards(moe):
    save(moe, {"model.norm.weight": torch.ones(64)}, "b.safetensors")
    (moe / "model.safetensors").rename(moe / "c.safetensors")
    write_index(moe, {"model.norm.weight": "b.safetensors", "model.embed_tokens.weight": "c.safetensors"})
    expect_error(moe, "tensor model.norm.weight is in both b.safetensors and c.safetensors")


def test_one_file_goes_before_an_index(moe):
    """As in transformers: an index that an earlier save left behind is not read."""
    want = load(moe)
    (moe / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": "old"}}))
    assert_same(load(moe), want)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_truncated_file(moe, keep):
    data = (moe / "model.safetensors").read_bytes()
    (moe / "model.safetensors").write_bytes(data[:keep])
    expect_error(moe, "model.safetensors", "is damaged or cut short")


def test_not_a_safetensors_file(moe):
    (moe / "model.safetensors").write_bytes(b"\xff" * 1000)
    expect_error(moe, "is damaged or cut short")


def test_other_formats_are_not_read(moe):
    (moe / "model.safetensors").rename(moe / "pytorch_model.bin")
    expect_error(moe, "only safetensors are read", "pytorch_model.bin")


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "x.bin", "a\\b.safetensors", 7, None],
)
def test_shard_names_stay_in_the_folder(moe, name):
    (moe.parent / "secret.safetensors").write_bytes(b"")
    write_index(moe, {"model.norm.weight": name})
    expect_error(moe, "as a shard; a shard is a .safetensors file beside it")


def test_index_without_its_shards(moe):
    write_index(moe, {"model.norm.weight": "gone.safetensors"})
    expect_error(moe, "gone.safetensors does not exist")
    write_index(moe, {})
    expect_error(moe, "has no weight_map")


@pytest.mark.parametrize(
    ("name", "tensor", "shown"),
    [
        ("model.layers.0.mlp.up_proj.weight_packed", torch.zeros(4, 4, dtype=torch.int32), "type I32"),
        ("model.layers.0.mlp.up_proj.qweight", torch.zeros(4, 4, dtype=torch.int32), "type I32"),
        ("model.layers.0.mlp.up_proj.weight_scale", torch.zeros(4, 1), "type F32"),
        ("model.layers.0.experts.0.up_proj.weight", torch.zeros(4, 4, dtype=torch.uint8), "type U8"),
        ("model.layers.0.self_attn.k_scale", torch.ones(1), "type F32"),
    ],
)
def test_quantized_tensors_are_called_so(moe, name, tensor, shown):
    save(moe, tensors(moe) | {name: tensor})
    expect_error(moe, f"the weights are quantized ({name} of {shown}): only plain bfloat16")


def test_a_weight_in_float8_is_quantized(moe):
    weights = tensors(moe)
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].to(torch.float8_e4m3fn)
    save(moe, weights)
    expect_error(moe, "the weights are quantized (model.layers.0.mlp.up_proj.weight of type F8_E4M3)")


def test_quantized_towers_are_not_read(moe):
    want = load(moe)
    save(moe, tensors(moe) | {"model.vision_tower.x.weight_packed": torch.zeros(4, dtype=torch.int32)})
    assert_same(load(moe), want)


def test_unknown_load_format(moe):
    with pytest.raises(ValueError, match="load format 'gguf' is not supported; supported: auto, safetensors, dummy"):
        load(moe, "gguf")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
