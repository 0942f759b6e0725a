"""A checkpoint's fields change our logits as they change transformers', or are refused by name: one row a field."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_loader.loader import load_model
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.paged_harness import PagedHarness
from sglang.test.tiny_models import (
    VOCAB,
    F,
    S,
    load_oracle,
    make_tiny_gemma4,
    make_tiny_llama,
    make_tiny_unified,
)

register_cpu_ci(est_time=30, suite="base-a-test-cpu")

FP32_BOUND = 1e-5  # largest error over the reference's largest logit
PROMPT = torch.randint(6, VOCAB, (30,), generator=torch.Generator().manual_seed(1)).tolist()
TWELVE = {"num_hidden_layers": 12, "layer_types": ([S] * 5 + [F]) * 2}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def our_model(folder: Path) -> torch.nn.Module:
    return load_model(ModelConfig.load(str(folder)), "auto", torch.device("cpu"))


def our_logits(folder: Path) -> torch.Tensor:
    return PagedHarness(our_model(folder), ModelConfig.load(str(folder))).step({2: PROMPT})[2]


def their_logits(folder: Path) -> torch.Tensor:
    return load_oracle(folder, torch.float32)(torch.tensor([PROMPT])).logits[0]


def assert_same(got: torch.Tensor, want: torch.Tensor) -> None:
    assert torch.isfinite(got).all()
    assert ((got - want).abs().max() / want.abs().max()).item() < FP32_BOUND


def edit(folder: Path, **values) -> dict:
    """Set fields of config.json, those of a wrapper's text_config as `text_...`; the value ... takes one out."""
    raw = json.loads((folder / "config.json").read_text())
    for name, value in values.items():
        is_inside = name.startswith("text_") and name != "text_config" and "text_config" in raw
        place, name = (raw["text_config"], name[5:]) if is_inside else (raw, name)
        if value is ...:
            del place[name]
        else:
            place[name] = value
    (folder / "config.json").write_text(json.dumps(raw))
    return raw


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved model, text-only or wrapped, made once; not to be written to."""
    made: dict[bool, Path] = {}

    def folder(wrapped: bool) -> Path:
        if wrapped not in made:
            path = tmp_path_factory.mktemp("saved")
            made[wrapped] = make_tiny_gemma4(path, "dense_k_eq_v", torch.float32, wrapped=wrapped)
        return made[wrapped]

    return folder


def changed_copy(saved: Path, place: Path, changes: dict, wrapped: bool) -> Path:
    """`saved` with other fields in config.json, those of its text_config if `wrapped`."""
    shutil.copytree(saved, place, dirs_exist_ok=True)
    edit(place, **({f"text_{name}": value for name, value in changes.items()} if wrapped else changes))
    return place


@pytest.mark.parametrize("variant", ["dense_k_eq_v", "moe_top2", "ple_shared_double_wide"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_transformers_saves_of_twelve_layers(tmp_path, variant, wrapped):
    """It writes per_layer_config, keys padded with zeros, and no global_head_dim."""
    make_tiny_gemma4(tmp_path, variant, torch.float32, wrapped=wrapped, **TWELVE)
    raw = json.loads((tmp_path / "config.json").read_text())
    text = raw["text_config"] if wrapped else raw
    assert text["per_layer_config"].keys() == {"05", "11"} and "global_head_dim" not in text
    assert_same(our_logits(tmp_path), their_logits(tmp_path))


FULL_ROPE = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}
SLIDING_ROPE = {"rope_type": "default", "rope_theta": 1e4}
LLAMA3 = {"factor": 4.0, "original_max_position_embeddings": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def rope(full: dict | None = None, sliding: dict | None = None) -> dict:
    return {F: full or FULL_ROPE, S: sliding or SLIDING_ROPE}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": 4},
        {"rms_norm_eps": 0.05},
        {"final_logit_softcapping": None},
        {"final_logit_softcapping": 0.5},
        {"final_logit_softcapping": ...},
        {"use_bidirectional_attention": "vision"},
        {"rope_parameters": None},
        {"rope_parameters": ...},
        {"rope_parameters": rope(sliding={"rope_theta": 77.0})},
        {"rope_parameters": rope(sliding={"type": "default", "rope_theta": 77.0})},
        {"rope_parameters": rope(full={**FULL_ROPE, "rope_theta": 77.0, "partial_rotary_factor": 0.5})},
        {"rope_parameters": rope(full={**FULL_ROPE, "factor": 3.0})},
        {"rope_parameters": rope(full={"rope_type": "proportional", "rope_theta": 77.0})},
        {"rope_parameters": rope(full={"rope_type": "proportional", "rope_theta": 77.0}), "partial_rotary_factor": 0.5},
        {"rope_parameters": rope(full={"rope_type": "default", "rope_theta": 77.0})},
        {"rope_parameters": rope(full={"rope_type": "llama3", "rope_theta": 1e4, **LLAMA3})},
        {"partial_rotary_factor": 0.5, "rope_theta": 5.0},  # no effect: the objects say them
        {"max_position_embeddings": 64},
        {"layer_types": ..., "sliding_window_pattern": 6},
        {"layer_types": [S, S, S, F], "sliding_window_pattern": 2},
        {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 3},
        {"num_kv_shared_layers": ..., "enable_moe_block": ..., "attention_bias": ...},
        {"attention_dropout": 0.5, "use_cache": False, "initializer_range": 9.0, "chunk_size_feed_forward": 2},
        {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 8},
        {"attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 3, "hidden_act": "relu"},
        {"global_head_dim": 32, "num_global_key_value_heads": 2},
        {"pad_token_id": 5, "bos_token_id": 9},
    ],
)
def test_a_field_means_what_it_means_to_transformers(folders, tmp_path, changes, wrapped):
    folder = changed_copy(folders(wrapped=wrapped), tmp_path, changes, wrapped)
    assert_same(our_logits(folder), their_logits(folder))


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("dense_k_eq_v", {"attention_bias": True}),
        ("dense_k_eq_v", {"attention_k_eq_v": False}),
        ("dense_k_eq_v", {"num_global_key_value_heads": None}),
        ("dense_k_eq_v", {"global_head_dim": 16}),
        ("dense_k_eq_v", {"head_dim": 64}),
        ("dense_k_eq_v", {"layer_types": [S, F, S, S]}),  # the last is full, whatever the list says
        ("dense_k_eq_v", {"layer_types": None, "num_hidden_layers": 7}),
        ("ple_shared_double_wide", {"vocab_size_per_layer_input": VOCAB + 3}),
        ("ple_shared_double_wide", {"use_double_wide_mlp": False}),
        ("ple_shared_double_wide", {"num_kv_shared_layers": 0}),
        ("ple_shared_double_wide", {"attention_bias": True}),
        ("moe_top2", {"enable_moe_block": False}),
        ("moe_top2", {"top_k_experts": 1}),
    ],
)
def test_shapes_that_fields_ask_for(tmp_path, variant, changes):
    make_tiny_gemma4(tmp_path, variant, torch.float32, **changes)
    assert_same(our_logits(tmp_path), their_logits(tmp_path))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": SLIDING_ROPE}, "rope_parameters must hold an object '(full|sliding)_attention'"),
        ({"rope_parameters": {}}, "rope_parameters must hold an object"),
        ({"rope_parameters": {F: FULL_ROPE}}, "rope_parameters must hold an object 'sliding_attention'"),
        ({"rope_parameters": {F: FULL_ROPE, S: None}}, "rope_parameters must hold an object 'sliding_attention'"),
        ({"rope_parameters": rope(sliding={"rope_type": "default"})}, "field 'rope_theta' is missing"),
        ({"rope_parameters": rope(sliding={**SLIDING_ROPE, "partial_rotary_factor": 0.5})}, "partial_rotary_factor"),
        ({"rope_parameters": rope(full={**FULL_ROPE, "rope_type": "yarn"})}, "rope_type 'yarn' is not supported"),
        ({"rope_parameters": rope(full={**FULL_ROPE, "rope_type": "dynamic"})}, "rope_type 'dynamic'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope_scaling must be null, got"),
        ({"rope_scaling": rope()}, "rope_scaling must be null, got"),
        ({"is_causal": False}, "is_causal must be one of True, got False"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention must be one of null, 'vision'"),
        ({"attention_chunk_size": 4}, "attention_chunk_size must be null, got 4"),
        ({"layer_types": ..., "sliding_window_pattern": 5}, "sliding_window_pattern 5 is not read here"),
        ({"layer_types": ..., "_sliding_window_pattern": 5}, "_sliding_window_pattern 5 is not read here"),
        ({"layer_types": [S, F]}, "layer_types must list 4 of"),
        ({"layer_types": [S, S, "chunked_attention", F]}, "layer_types must list 4 of"),
        ({"layer_types": [S, F, S, F]}, "layers of kind full_attention different sizes"),
        ({"hidden_activation": "gelu"}, "hidden_activation must be one of 'gelu_pytorch_tanh', got 'gelu'"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps must be a positive number"),
        ({"sliding_window": 0}, "sliding_window must be an integer of at least 1, got 0"),
        ({"final_logit_softcapping": 0.0}, "final_logit_softcapping must be a positive number"),
        ({"model_type": "gemma3_text"}, "model_type must be one of"),
        ({"global_head_dim": 16}, "global_head_dim 16 contradicts per_layer_config"),
        ({"num_global_key_value_heads": 4}, "num_global_key_value_heads 4 contradicts per_layer_config"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"the weights are quantized \(fp8\): only plain"),
        ({"hidden_size": 64.0}, "hidden_size must be an integer"),
        (
            {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 511},
            "vocab_size_per_layer_input 511 is below vocab_size 512: some tokens would have no per-layer input",
        ),
    ],
)
def test_what_we_do_not_do_is_refused_by_its_name(folders, tmp_path, changes, message, wrapped):
    if wrapped and "model_type" in changes:
        pytest.skip("transformers does not read a text_config's own")
    folder = changed_copy(folders(wrapped=wrapped), tmp_path, changes, wrapped)
    with pytest.raises(ValueError, match=message) as caught:
        ModelConfig.load(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma3"}, "model_type must be one of 'gemma4', 'gemma4_unified', got 'gemma3'"),
        ({"text_config": ...}, "field 'text_config' is missing"),
        ({"is_causal": False}, "is_causal must be one of True, got False"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, r"quantized \(compressed-tensors\)"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights must be null"),
        ({"configuration_files": ["config.4.0.0.json"]}, "configuration_files must be null"),
        ({"dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is not supported"),
    ],
)
def test_beside_a_text_config(folders, tmp_path, changes, message):
    folder = changed_copy(folders(wrapped=True), tmp_path, changes, wrapped=False)
    with pytest.raises(ValueError, match=message):
        ModelConfig.load(str(folder))


@pytest.mark.parametrize("changes", [{"sliding_window": 4}, {"rope_theta": 3.0}, {"final_logit_softcapping": 1.0}])
def test_text_fields_beside_a_text_config_are_not_read(folders, tmp_path, changes):
    folder = changed_copy(folders(wrapped=True), tmp_path, changes, wrapped=False)
    assert_same(our_logits(folder), their_logits(folder))


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": ..., "torch_dtype": "float16"}, torch.float16),
        ({"dtype": "bfloat16", "torch_dtype": "float16"}, torch.bfloat16),
        ({"dtype": None, "torch_dtype": "float16"}, torch.float16),
        ({"dtype": ...}, torch.float32),  # what the weights are stored in
        ({"dtype": ..., "text_dtype": "float16"}, torch.float32),
        ({"dtype": "float16", "text_dtype": "bfloat16"}, torch.float16),
    ],
)
def test_dtype(folders, tmp_path, fields, want):
    inside = {name[5:]: value for name, value in fields.items() if name.startswith("text_")}
    outside = {name: value for name, value in fields.items() if name[5:] not in inside}
    folder = changed_copy(folders(wrapped=True), tmp_path, inside, wrapped=True)
    edit(folder, **outside)
    assert ModelConfig.load(str(folder)).torch_dtype == want == load_oracle(folder, "auto").dtype


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"04": {"head_dim": 32}}, r"must be named after one of the layers 0 to 3"),
        ({"-1": {"head_dim": 32}}, r"per_layer_config\['-1'\] must be named after one of the layers 0 to 3"),
        ({"3.0": {"head_dim": 32}}, r"must be named after one of the layers"),
        ({"3": {"head_dim": 32}, "03": {"head_dim": 32}}, r"per_layer_config\['03'\] must be named .* at most once"),
        ({"3": 32}, r"per_layer_config\['3'\] must be an object, got 32"),
        ({"3": {"intermediate_size": 8}}, r"intermediate_size can't differ between layers, only head_dim, num_key"),
        ({"3": {"head_dim": 32, "skip": ["mlp"]}}, r"per_layer_config\['3'\]: skip can't differ"),
        ({"3": {"head_dim": "32"}}, "head_dim must be an integer of at least 2, got '32'"),
        ({"0": {"head_dim": 32}}, "per_layer_config gives layers of kind sliding_attention different sizes"),
        ([], "per_layer_config must be an object"),
    ],
)
def test_per_layer_objects_that_no_model_has(tmp_path, objects, message):
    make_tiny_gemma4(tmp_path, "dense_k_eq_v", torch.float32)
    edit(tmp_path, per_layer_config=objects)
    with pytest.raises(ValueError, match=message) as caught:
        ModelConfig.load(str(tmp_path))
    assert "\n" not in str(caught.value)


# ---- the head ----------------------------------------------------------------------------------------------------


def rewrite(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Put tensors into the weights; None takes one out."""
    weights = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()} | tensors
    save_file({name: t.contiguous() for name, t in weights.items() if t is not None}, folder / "model.safetensors")


EMBEDDING = {False: "model.embed_tokens.weight", True: "model.language_model.embed_tokens.weight"}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stored", ["both", "both equal", "head only"])
def test_a_head_in_the_file(folders, tmp_path, wrapped, tied, stored):
    """One that differs is used, even if the config calls it tied; alone it is what a tied model embeds with."""
    if stored == "head only" and not tied:
        pytest.skip("an embedding is missing")
    folder = changed_copy(folders(wrapped=wrapped), tmp_path, {"tie_word_embeddings": tied}, wrapped=False)
    table = load_file(folder / "model.safetensors")[EMBEDDING[wrapped]].clone()
    rewrite(folder, **{"lm_head.weight": table.roll(1, 0) if stored == "both" else table})
    if stored == "head only":
        rewrite(folder, **{EMBEDDING[wrapped]: None})
    got, want = our_logits(folder), their_logits(folder)
    assert_same(got, want)
    differs = (want - their_logits(folders(wrapped=wrapped))).abs().max() > 0.1
    assert differs == (stored == "both")
    own_head = not tied or stored == "both"  # it costs memory only where it is needed
    assert hasattr(our_model(folder), "lm_head") == own_head


@pytest.mark.parametrize(("inside", "outside"), [(False, True), (True, False), (False, ...), (..., False)])
def test_tie_word_embeddings_beside_a_text_config(folders, tmp_path, inside, outside):
    """What stands inside is not read."""
    folder = changed_copy(folders(wrapped=True), tmp_path, {"tie_word_embeddings": inside}, wrapped=True)
    edit(folder, tie_word_embeddings=outside)
    if outside is False:
        with pytest.raises(ValueError, match=r"missing lm_head.weight \[512, 64\]"):
            our_logits(folder)
        rewrite(folder, **{"lm_head.weight": torch.randn(VOCAB, 64, generator=torch.Generator().manual_seed(3))})
    assert_same(our_logits(folder), their_logits(folder))


@pytest.mark.parametrize("variant", ["llama", "qwen2", "qwen3"])
def test_a_tied_llama_with_another_head(tmp_path, variant):
    make_tiny_llama(tmp_path, variant, torch.float32, tied=True)
    table = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(tmp_path, **{"lm_head.weight": table.roll(1, 0)})
    assert_same(our_logits(tmp_path), their_logits(tmp_path))


def test_a_head_of_another_shape_is_told(folders, tmp_path):
    folder = changed_copy(folders(wrapped=False), tmp_path, {}, wrapped=False)
    rewrite(folder, **{"lm_head.weight": torch.zeros(VOCAB + 1, 64)})
    with pytest.raises(ValueError, match=r"lm_head.weight has shape \[513, 64\], expected \[512, 64\]"):
        our_logits(folder)


# ---- the plain family ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A saved model of the plain family by its variant, made once; not to be written to."""
    made: dict[str, Path] = {}

    def folder(variant: str) -> Path:
        if variant not in made:
            made[variant] = make_tiny_llama(tmp_path_factory.mktemp(variant), variant, torch.float32)
        return made[variant]

    return folder


LLAMA_ROPE = {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3}


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("llama", {"rope_parameters": ..., "rope_theta": 77.0}),
        ("llama", {"rope_parameters": ..., "rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}),
        ("llama", {"rope_parameters": ..., "rope_theta": 500.0, "rope_scaling": {"type": "llama3", **LLAMA3}}),
        ("llama", {"rope_scaling": LLAMA_ROPE}),  # goes before rope_parameters
        ("llama", {"rope_scaling": None, "rope_theta": 5.0}),
        ("llama", {"rope_parameters": LLAMA_ROPE, "original_max_position_embeddings": 16}),  # outside goes before
        ("llama", {"rope_parameters": {"rope_theta": 77.0, "mine": 1}}),
        ("llama", {"rope_parameters": {}}),
        ("llama", {"rms_norm_eps": 0.05}),
        ("llama", {"attention_dropout": 0.5, "pretraining_tp": 2, "use_cache": False, "sliding_window": 4}),
        ("llama", {"head_dim": None}),
        ("qwen2", {"sliding_window": 4}),
        ("qwen2", {"sliding_window": None}),
        ("qwen2", {"use_sliding_window": False, "layer_types": ...}),
        ("qwen2", {"max_window_layers": 2, "layer_types": ...}),
        ("qwen2", {"layer_types": [S, F, S]}),
        ("qwen2", {"attention_bias": False, "mlp_bias": True}),  # its class has no such fields
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "layer_types": ...}),
        ("qwen3", {"rope_parameters": {"rope_theta": 77.0, "rope_type": "default"}}),
    ],
)
def test_a_plain_models_field(plain, tmp_path, variant, changes):
    folder = changed_copy(plain(variant), tmp_path, changes, wrapped=False)
    if changes.get("sliding_window", 1) is None:
        edit(folder, layer_types=...)
    assert_same(our_logits(folder), their_logits(folder))


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear' is not supported"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn' is not supported"),
        ("llama", {"rope_parameters": {F: SLIDING_ROPE}}, "rope_parameters holds an object 'full_attention'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act must be one of 'silu', got 'gelu'"),
        ("llama", {"is_causal": False}, "is_causal must be one of True, got False"),
        ("llama", {"per_layer_config": {"1": {"intermediate_size": 8}}}, "per_layer_config must be one of null, {}"),
        ("llama", {"layer_types": [S, F, F]}, "layer_types names sliding_attention, but no sliding window is in use"),
        ("qwen2", {"use_sliding_window": False}, "layer_types names sliding_attention, but no sliding window is in"),
        ("qwen2", {"layer_types": [S]}, "layer_types must list 3 of"),
        ("qwen3", {"num_key_value_heads": ...}, "4 attention heads do not divide among 32 KV heads"),
    ],
)
def test_what_a_plain_model_can_not_have(plain, tmp_path, variant, changes, message):
    folder = changed_copy(plain(variant), tmp_path, changes, wrapped=False)
    with pytest.raises(ValueError, match=message):
        ModelConfig.load(str(folder))


# ---- the 12B -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{}, {"attention_k_eq_v": False}, {"num_kv_shared_layers": 1, "layer_types": [S, F, S, F]}],
)
def test_unified(tmp_path, wrapped, changes):
    """Its vision and audio embedders are skipped by their names."""
    make_tiny_unified(tmp_path, torch.float32, wrapped=wrapped, **changes)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert any(name.startswith("model.vision_embedder.patch_ln1") for name in names) == wrapped
    assert_same(our_logits(tmp_path), their_logits(tmp_path))


def test_unified_defaults_and_fields_its_class_does_not_have(tmp_path):
    make_tiny_unified(tmp_path, torch.float32)
    for name in ("sliding_window", "max_position_embeddings"):
        edit(tmp_path, **{f"text_{name}": ...})
    edit(tmp_path, text_hidden_size_per_layer_input=8, text_enable_moe_block=True, text_num_experts=3)
    config = ModelConfig.load(str(tmp_path))
    assert (config.sliding_window, config.context_len) == (1024, 262_144)
    assert (config.text.ple_size, config.text.num_experts) == (0, 0)
    edit(tmp_path, text_max_position_embeddings=64)
    assert_same(our_logits(tmp_path), their_logits(tmp_path))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
