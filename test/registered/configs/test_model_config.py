"""ModelConfig: what is read from config.json in its several shapes, and one clear line for everything that is wrong."""

import json
import sys
from typing import ClassVar

import pytest
import torch

from sglang.srt.configs.architectures import ARCHITECTURES, model_class
from sglang.srt.configs.gemma4 import Gemma4TextConfig
from sglang.srt.configs.llama import LlamaConfig
from sglang.srt.configs.model_config import KVLayerSpec, ModelConfig
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=4, suite="base-a-test-cpu")

S, F = "sliding_attention", "full_attention"
MOE_26B = {  # sizes of Gemma 4 26B-A4B's text model
    "model_type": "gemma4_text",
    "vocab_size": 262144,
    "hidden_size": 2816,
    "intermediate_size": 2112,
    "num_hidden_layers": 30,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_global_key_value_heads": 2,
    "head_dim": 256,
    "global_head_dim": 512,
    "attention_k_eq_v": True,
    "sliding_window": 1024,
    "layer_types": ([S] * 5 + [F]) * 5,
    "enable_moe_block": True,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
    "hidden_size_per_layer_input": None,
    "max_position_embeddings": 262144,
    "final_logit_softcapping": 30.0,
    "dtype": "bfloat16",
    "eos_token_id": 1,
}
E2B = {
    "vocab_size": 262144,
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "num_global_key_value_heads": 4,  # to be ignored: attention_k_eq_v is off
    "head_dim": 256,
    "global_head_dim": 512,
    "layer_types": ([S] * 4 + [F]) * 7,
    "num_kv_shared_layers": 20,
    "use_double_wide_mlp": True,
    "sliding_window": 512,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "torch_dtype": "float16",
}


def multimodal(text: dict) -> dict:
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "text_config": text,
        "vision_config": {"hidden_size": 7},
        "eos_token_id": [1, 106],
    }


@pytest.fixture
def load(tmp_path):
    def load(raw: dict | str, generation: dict | None = None, **kwargs) -> ModelConfig:
        (tmp_path / "config.json").write_text(raw if isinstance(raw, str) else json.dumps(raw))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return ModelConfig.load(str(tmp_path), **kwargs)

    return load


def test_26b(load):
    config = load(multimodal(MOE_26B), {"eos_token_id": [1, 106, 50], "top_k": 64})
    assert (config.vocab_size, config.hidden_size, config.context_len) == (262144, 2816, 262144)
    assert (config.dtype, config.torch_dtype, config.model_type) == ("bfloat16", torch.bfloat16, "gemma4")
    assert config.eos_token_ids == [1, 50, 106]
    assert config.generation_config["top_k"] == 64
    assert config.text_config == {**MOE_26B, "tie_word_embeddings": True}
    assert config.sliding_window == 1024
    assert len(config.kv_layers) == 30
    assert config.kv_layers[4] == KVLayerSpec(4, True, 8, 256)
    assert config.kv_layers[5] == KVLayerSpec(5, False, 2, 512)
    text = config.text
    assert (text.num_experts, text.top_k_experts, text.moe_intermediate_size, text.ple_size) == (128, 8, 704, 0)
    assert text.layers[5].k_eq_v and not text.layers[4].k_eq_v


def test_float32_router_logits_need_a_router(load):
    assert not load(multimodal(MOE_26B)).text.float32_router_logits
    assert load(multimodal(MOE_26B), router_logits_dtype="float32").text.float32_router_logits
    for dense in (multimodal(E2B), LLAMA):
        with pytest.raises(ValueError, match="--router-logits-dtype float32: this model has no expert router"):
            load(dense, router_logits_dtype="float32")


def test_e2b_shares_kv_and_doubles_width(load):
    config = load(multimodal(E2B))
    assert [spec.layer for spec in config.kv_layers] == list(range(15))
    assert config.kv_layers[14] == KVLayerSpec(14, False, 1, 512)
    layers = config.text.layers
    assert {layer.kv_layer for layer in layers[15:] if layer.sliding} == {13}
    assert {layer.kv_layer for layer in layers[15:] if not layer.sliding} == {14}
    assert (layers[14].intermediate_size, layers[15].intermediate_size) == (6144, 12288)
    assert config.text.ple_size == 256
    assert config.context_len == 131072


def test_transformers_saves_per_layer_objects(load):
    """transformers 5.17 writes no global_head_dim, but an object for each full layer."""
    raw = {k: v for k, v in MOE_26B.items() if not k.startswith(("global", "num_global"))}
    raw["per_layer_config"] = {str(i): {"head_dim": 512, "num_key_value_heads": 2} for i in range(5, 30, 6)}
    flat = load({**raw, "architectures": ["Gemma4ForCausalLM"]})
    assert flat.kv_layers == load(multimodal(MOE_26B)).kv_layers


def test_llama(load):
    config = load(LLAMA)
    assert (config.dtype, config.sliding_window, config.eos_token_ids) == ("float16", None, [])
    assert config.kv_layers == [KVLayerSpec(0, False, 4, 16), KVLayerSpec(1, False, 4, 16)]


def test_context_length_and_dtype(load):
    assert load(LLAMA, context_length=512).context_len == 512
    assert load(LLAMA, dtype="float32").torch_dtype == torch.float32
    with pytest.raises(ValueError, match="context length 513 is out of range: this model takes 1 to 512 tokens"):
        load(LLAMA, context_length=513)
    with pytest.raises(ValueError, match="dtype 'int8' is not supported"):
        load(LLAMA, dtype="int8")


def test_override_merges_objects(load):
    config = load(multimodal(MOE_26B), json_override={"text_config": {"sliding_window": 64}, "eos_token_id": 9})
    assert config.sliding_window == 64
    assert config.hidden_size == 2816
    assert config.eos_token_ids == [1, 9]


def test_overrides_beside_a_text_config_go_inside(load):
    config = load(multimodal(MOE_26B), json_override={"sliding_window": 64, "dtype": "float16", "eos_token_id": [7]})
    assert (config.sliding_window, config.dtype) == (64, "float16")
    assert config.eos_token_ids == [1, 7]
    both = {"text_config": {"rms_norm_eps": 0.5}, "sliding_window": 64, "final_logit_softcapping": None}
    text = load(multimodal(MOE_26B), json_override=both).text
    assert (text.rms_norm_eps, text.sliding_window, text.final_logit_softcap) == (0.5, 64, None)
    assert load(LLAMA, json_override={"rope_theta": 5.0}).text.rope.theta == 5.0
    # what only other parts have is the file's own matter
    assert (
        load(multimodal(MOE_26B), json_override={"vision_config": {"hidden_size": 9}}).text
        == load(multimodal(MOE_26B)).text
    )


@pytest.mark.parametrize(
    ("raw", "override", "message"),
    [
        (multimodal(MOE_26B), {"slidng_window": 64}, "override slidng_window: .* did you mean sliding_window"),
        (multimodal(MOE_26B), {"text_config": {"slidng_window": 6}}, "slidng_window: .* did you mean sliding_w"),
        (MOE_26B | {"architectures": ["Gemma4ForCausalLM"]}, {"top_k_expert": 4}, "did you mean top_k_experts"),
        (LLAMA, {"rope_tetha": 1.0}, "override rope_tetha: .* did you mean rope_theta"),
        (LLAMA, {"zzz": 1}, "override zzz: config.json has no such field, and none is read$"),
        (LLAMA, {"text_config": {"rope_theta": 1.0}}, "override text_config: config.json has none"),
        (multimodal(MOE_26B), {"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope_scaling must be null"),
        (multimodal(MOE_26B), {"text_config": 3}, "text_config must be an object, got 3"),
        (LLAMA, {"quantization_config": {"quant_method": "awq"}}, r"the weights are quantized \(awq\)"),
    ],
)  # fmt: skip
def test_overrides_that_would_change_nothing_are_refused(load, raw, override, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(raw, json_override=override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parser", "raw"), [(Gemma4TextConfig, MOE_26B), (Gemma4TextConfig, E2B), (LlamaConfig, LLAMA)]
)
def test_fields_that_may_be_overridden_are_those_that_are_read(parser, raw):
    class Noted(dict):
        names: ClassVar[set[str]] = set()

        def get(self, name, default=None):
            self.names.add(name)
            return super().get(name, default)

    parser.from_dict(Noted(raw))
    assert Noted.names <= set(parser.FIELDS)


@pytest.mark.parametrize("name", ["hf_quant_config.json", "adapter_config.json"])
def test_files_that_make_it_another_model(load, tmp_path, name):
    (tmp_path / name).write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    wanted = {"hf_quant_config.json": r"quantized \(NVFP4\)", "adapter_config.json": "adapters are not served"}
    with pytest.raises(ValueError, match=wanted[name]):
        load(LLAMA)


def without(raw: dict, name: str) -> dict:
    return {k: v for k, v in raw.items() if k != name}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "must hold a JSON object, got list"),
        ("[" * 100_000, "is not valid JSON"),
        ({**LLAMA, "architectures": "LlamaForCausalLM"}, "architectures must be a list of names"),
        (without(LLAMA, "architectures"), "architectures must be a list of names, got None"),
        ({**LLAMA, "architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not supported; supported: Gemma4"),
        (without(LLAMA, "hidden_size"), "field 'hidden_size' is missing"),
        ({**LLAMA, "hidden_size": "64"}, "hidden_size must be an integer of at least 1, got '64'"),
        ({**LLAMA, "num_hidden_layers": -1}, "num_hidden_layers must be an integer of at least 1, got -1"),
        ({**LLAMA, "num_hidden_layers": 10**12}, "num_hidden_layers must be at most 4096, got 1000000000000"),
        (multimodal({**MOE_26B, "num_hidden_layers": 10**12}), "num_hidden_layers must be at most 4096"),
        ({**LLAMA, "num_key_value_heads": 3}, "4 attention heads do not divide among 3 KV heads"),
        ({**LLAMA, "model_type": "mistral"}, "model_type must be one of"),
        ({**LLAMA, "hidden_act": "relu"}, "hidden_act must be one of 'silu', got 'relu'"),
        ({**LLAMA, "rope_scaling": {"rope_type": "yarn"}}, "rope_type 'yarn' is not supported"),
        ({**LLAMA, "rope_parameters": [1]}, "rope_parameters must be an object"),
        ({**LLAMA, "eos_token_id": "x"}, "eos_token_id must be a token id or a list of them"),
        ({**LLAMA, "torch_dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is not supported"),
        (multimodal({**MOE_26B, "layer_types": [S, F]}), "layer_types must list 30 of"),
        (multimodal({**MOE_26B, "top_k_experts": 129}), "top_k_experts 129 exceeds num_experts 128"),
        (multimodal({**MOE_26B, "use_bidirectional_attention": "all"}), "use_bidirectional_attention must be one of"),
        (multimodal({**MOE_26B, "num_kv_shared_layers": 30}), "layer 0 shares the KV of a sliding_attention layer"),
        (multimodal({**MOE_26B, "final_logit_softcapping": 0}), "final_logit_softcapping must be a positive number"),
        ({**multimodal(MOE_26B), "tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
    ],
)
def test_bad_config_is_one_clear_line(load, raw, message):
    with pytest.raises(ValueError) as caught:
        load(raw)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_path(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        ModelConfig.load(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="has no config.json"):
        ModelConfig.load(str(tmp_path))


def test_every_listed_architecture_has_a_model():
    for name in ARCHITECTURES:
        assert issubclass(model_class([name]), torch.nn.Module)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
