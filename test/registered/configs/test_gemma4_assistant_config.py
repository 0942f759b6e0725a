"""The drafter's config: real sizes fit their targets; what can't be run, or does not fit, is one clear line."""

import json
import sys

import pytest

from sglang.srt.configs.architectures import DRAFTERS, drafter_class
from sglang.srt.configs.gemma4 import Gemma4TextConfig
from sglang.srt.configs.gemma4_assistant import Gemma4AssistantConfig, check_fits
from sglang.srt.configs.llama import LlamaConfig
from sglang.srt.configs.model_config import DrafterConfig, ModelConfig
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=4, suite="base-a-test-cpu")

S, F = "sliding_attention", "full_attention"
TARGET_26B = {
    "hidden_size": 2816,
    "intermediate_size": 2112,
    "num_hidden_layers": 30,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_global_key_value_heads": 2,
    "attention_k_eq_v": True,
    "sliding_window": 1024,
    "enable_moe_block": True,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
    "hidden_size_per_layer_input": 0,
    "max_position_embeddings": 262144,
}
TARGET_E2B = {
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "layer_types": ([S] * 4 + [F]) * 7,
    "num_kv_shared_layers": 20,
    "use_double_wide_mlp": True,
}
TEXT = {
    "model_type": "gemma4_text",
    "num_hidden_layers": 4,
    "layer_types": [S, S, S, F],
    "num_kv_shared_layers": 4,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "final_logit_softcapping": None,
}
DRAFTER_26B = {
    "architectures": ["Gemma4AssistantForCausalLM"],
    "model_type": "gemma4_assistant",
    "backbone_hidden_size": 2816,
    "num_centroids": 2048,
    "centroid_intermediate_top_k": 32,
    "use_ordered_embeddings": False,
    "text_config": {
        **TEXT,
        "hidden_size": 1024,
        "intermediate_size": 8192,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 2,
        "attention_k_eq_v": True,
        "sliding_window": 1024,
    },
}
DRAFTER_E2B = {
    "architectures": ["Gemma4AssistantForCausalLM"],
    "model_type": "gemma4_assistant",
    "backbone_hidden_size": 1536,
    "use_ordered_embeddings": True,
    "text_config": {
        **TEXT,
        "hidden_size": 256,
        "intermediate_size": 2048,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "sliding_window": 512,
    },
}


def changed(raw: dict, **values) -> dict:
    """`raw` with these values, those of its text_config prefixed text_; a value ... takes the field out."""
    text = {name[5:]: v for name, v in values.items() if name.startswith("text_") and name != "text_config"}
    top = {name: v for name, v in values.items() if name[5:] not in text}
    merged = {**raw, "text_config": without_dots({**raw["text_config"], **text}), **top}
    return without_dots(merged)


def without_dots(raw: dict) -> dict:
    return {name: value for name, value in raw.items() if value is not ...}


def parse(raw: dict) -> Gemma4AssistantConfig:
    return Gemma4AssistantConfig.from_dict(json.loads(json.dumps(raw)))


def target(raw: dict, **values) -> Gemma4TextConfig:
    return Gemma4TextConfig.from_dict({**raw, **values})


def test_26b_reads_layers_28_and_29():
    drafter = parse(DRAFTER_26B)
    assert (drafter.backbone_hidden_size, drafter.text.hidden_size, drafter.use_ordered_embeddings) == (
        2816,
        1024,
        False,
    )
    assert drafter.text.kv_layers == [] and not any(layer.owns_kv for layer in drafter.text.layers)
    layers = drafter.reading(target(TARGET_26B)).layers
    assert [layer.kv_layer for layer in layers] == [28, 28, 28, 29]
    assert [(layer.num_kv_heads, layer.head_dim) for layer in layers] == [(8, 256)] * 3 + [(2, 512)]
    assert not any(layer.owns_kv for layer in layers)


def test_e2b_reads_the_last_layers_below_the_shared_ones():
    drafter = parse(DRAFTER_E2B)
    assert (drafter.use_ordered_embeddings, drafter.num_centroids, drafter.centroid_intermediate_top_k) == (
        True,
        2048,
        32,
    )
    assert [layer.kv_layer for layer in drafter.reading(target(TARGET_E2B)).layers] == [13, 13, 13, 14]


def test_a_donor_with_a_drafters_index_is_still_the_targets():
    """Layers 2 and 3 of a four-layer target have the indices of two of the drafter's own."""
    small = target(TARGET_26B, num_hidden_layers=4, layer_types=[S, S, S, F])
    layers = parse(DRAFTER_26B).reading(small).layers
    assert [layer.kv_layer for layer in layers] == [2, 2, 2, 3]
    assert not any(layer.owns_kv for layer in layers)


def test_what_transformers_leaves_to_the_class():
    """num_kv_shared_layers 0 or absent means all; an object for each full layer instead of the global sizes."""
    for shared in (0, ..., None):
        assert parse(changed(DRAFTER_26B, text_num_kv_shared_layers=shared)) == parse(DRAFTER_26B)
    objects = {"3": {"head_dim": 512, "num_key_value_heads": 2}}
    raw = changed(DRAFTER_26B, text_num_global_key_value_heads=..., text_per_layer_config=objects)
    assert parse(raw) == parse(DRAFTER_26B)
    # 26B-A4B's file names sizes of a centroid head it does not have: they need not fit its vocabulary
    assert not parse(changed(DRAFTER_26B, num_centroids=1000)).use_ordered_embeddings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone_hidden_size": ...}, "field 'backbone_hidden_size' is missing"),
        ({"backbone_hidden_size": "1536"}, "backbone_hidden_size must be an integer of at least 1, got '1536'"),
        ({"text_config": ...}, "field 'text_config' is missing"),
        ({"text_config": 3}, "text_config must be an object, got 3"),
        ({"model_type": "gemma4"}, "one of 'gemma4_assistant', 'gemma4_unified_assistant', got 'gemma4'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, got 1"),
        ({"use_ordered_embeddings": 1}, "use_ordered_embeddings must be true or false, got 1"),
        ({"num_centroids": 1000}, "num_centroids 1000 does not divide vocab_size 262144"),
        ({"num_centroids": 16}, "centroid_intermediate_top_k 32 exceeds num_centroids 16"),
        ({"text_hidden_size": ...}, "field 'hidden_size' is missing"),
        ({"text_num_hidden_layers": 0}, "num_hidden_layers must be an integer of at least 1, got 0"),
        ({"text_model_type": "gemma3_text"}, "model_type must be one of 'gemma4_text', 'gemma4_unified_text'"),
        ({"text_num_kv_shared_layers": 3}, "a drafter's layers all share KV, but num_kv_shared_layers is 3 of 4"),
        ({"text_use_double_wide_mlp": True}, "use_double_wide_mlp is not supported in a drafter"),
        ({"text_hidden_size_per_layer_input": 8}, "hidden_size_per_layer_input must be 0 in a drafter, got 8"),
        ({"text_hidden_size_per_layer_input": ...}, "must be 0 in a drafter, got 256 (the default)"),
        ({"text_num_attention_heads": 3, "text_num_key_value_heads": 2}, "3 attention heads do not divide among 2 KV"),
    ],
)  # fmt: skip
def test_bad_config_is_one_clear_line(values, message):
    with pytest.raises(ValueError) as caught:
        parse(changed(DRAFTER_E2B, **values))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_moe_is_refused():
    experts = {"text_num_experts": 8, "text_top_k_experts": 2, "text_moe_intermediate_size": 64}
    with pytest.raises(ValueError, match="enable_moe_block is not supported in a drafter"):
        parse(changed(DRAFTER_26B, text_enable_moe_block=True, **experts))


ROPE = {S: {"rope_type": "default", "rope_theta": 20_000.0}, F: {"rope_type": "proportional", "rope_theta": 1e6}}


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"backbone_hidden_size": 1536}, ["backbone_hidden_size: 1536, target 2816"]),
        ({"text_vocab_size": 1000}, ["vocabulary: 1000, target 262144"]),
        ({"text_num_key_value_heads": 4}, ["KV heads of sliding_attention layer 0: 4, target 8"]),
        ({"text_num_global_key_value_heads": 1}, ["KV heads of full_attention layer 3: 1, target 2"]),
        ({"text_attention_k_eq_v": False}, ["KV heads of full_attention layer 3: 8, target 2"]),
        ({"text_head_dim": 128}, ["head size of sliding_attention layer 2: 128, target 256"]),
        ({"text_global_head_dim": 256}, ["head size of full_attention layer 3: 256, target 512"]),
        ({"text_sliding_window": 512}, ["sliding window: 512, target 1024"]),
        ({"text_rope_parameters": ROPE}, ["RoPE of sliding_attention layers", "theta=20000.0", "theta=10000.0"]),
        (
            {"backbone_hidden_size": 1, "text_sliding_window": 2},
            ["backbone_hidden_size: 1, target 2816; sliding window: 2, target 1024"],
        ),
    ],
)
def test_what_differs_from_the_target_is_named_with_both_values(values, parts):
    drafter = parse(changed(DRAFTER_26B, **values))
    with pytest.raises(ValueError, match="^the drafter does not fit the target: ") as caught:
        check_fits(drafter, target(TARGET_26B))
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_targets_without_a_donor():
    full_only = target(TARGET_26B, num_hidden_layers=2, layer_types=[F, F])
    with pytest.raises(ValueError, match="it has sliding_attention layer 0, but .* are full_attention only"):
        parse(DRAFTER_26B).reading(full_only)
    llama = LlamaConfig.from_dict(
        {
            "model_type": "llama",
            "vocab_size": 262144,
            "hidden_size": 2816,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
        }
    )
    with pytest.raises(ValueError, match="it drafts for Gemma 4 models only"):
        check_fits(parse(DRAFTER_26B), llama)


def write(folder, raw: dict) -> str:
    (folder / "config.json").write_text(json.dumps(raw))
    return str(folder)


def test_folder(tmp_path):
    config = DrafterConfig.load(write(tmp_path, DRAFTER_26B))
    assert config.assistant == parse(DRAFTER_26B)
    assert config.architectures == ["Gemma4AssistantForCausalLM"]
    assert drafter_class(config.architectures).__name__ in DRAFTERS


def test_a_drafter_is_not_served_alone(tmp_path):
    with pytest.raises(ValueError) as caught:
        ModelConfig.load(write(tmp_path, DRAFTER_26B))
    message = str(caught.value)
    assert "Gemma4AssistantForCausalLM is a drafter" in message and "--speculative-draft-model-path" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["Gemma4ForCausalLM", "EagleModel"])
def test_other_architectures_are_no_drafters(tmp_path, name):
    message = f"architecture {name} is not supported as a drafter; supported: Gemma4AssistantForCausalLM"
    with pytest.raises(ValueError, match=message):
        DrafterConfig.load(write(tmp_path, {**DRAFTER_26B, "architectures": [name]}))


def test_bad_path(tmp_path):
    with pytest.raises(ValueError, match="draft model path .* is not a folder"):
        DrafterConfig.load(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="has no config.json"):
        DrafterConfig.load(str(tmp_path))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
