"""The shipped drafter: files, size, names, fit to the shipped model, and how many of its drafts the model accepts.

Acceptance is measured with transformers' modules alone, one round after the other as a server would walk them.
"""

import json
import struct
import sys
from functools import cache

import pytest
import torch

from sglang.assets import shipped_drafter_path, shipped_model_path
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=20, suite="base-a-test-cpu")

DRAFTER, MODEL = shipped_drafter_path(), shipped_model_path()
STEPS = 5


def read_config(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


@cache
def drafter():
    from transformers import Gemma4AssistantForCausalLM

    model, info = Gemma4AssistantForCausalLM.from_pretrained(DRAFTER, dtype=torch.float32, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], f"{kind}: {info[kind]}"
    return model.eval()


@cache
def target():
    from transformers import Gemma4ForCausalLM

    return Gemma4ForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def test_files_and_size():
    assert {"README.md", "LICENSE", "config.json", "model.safetensors"} <= {f.name for f in DRAFTER.iterdir()}
    assert (DRAFTER / "model.safetensors").stat().st_size <= 8_000_000


def test_fits_the_model():
    """It reads the model's K and V with the model's positions, and its token ids are the model's."""
    model, config = read_config(MODEL), read_config(DRAFTER)
    text = config["text_config"]
    assert (config["architectures"], config["model_type"]) == (["Gemma4AssistantForCausalLM"], "gemma4_assistant")
    assert config["backbone_hidden_size"] == model["hidden_size"] and not config["use_ordered_embeddings"]
    same = """vocab_size num_key_value_heads num_global_key_value_heads head_dim global_head_dim attention_k_eq_v
        sliding_window rope_parameters max_position_embeddings rms_norm_eps hidden_activation"""
    assert {name: text[name] for name in same.split()} == {name: model[name] for name in same.split()}
    assert text["num_kv_shared_layers"] == text["num_hidden_layers"] == len(text["layer_types"])
    assert text["layer_types"][-1] == "full_attention" and set(text["layer_types"]) == set(model["layer_types"])
    assert text["final_logit_softcapping"] is None


def test_tensor_names_and_shapes():
    config = read_config(DRAFTER)
    text, backbone = config["text_config"], config["backbone_hidden_size"]
    hidden, heads, width = text["hidden_size"], text["num_attention_heads"], text["intermediate_size"]
    want = {
        "model.embed_tokens.weight": [text["vocab_size"], hidden],
        "model.norm.weight": [hidden],
        "pre_projection.weight": [hidden, 2 * backbone],
        "post_projection.weight": [backbone, hidden],
    }
    for i, kind in enumerate(text["layer_types"]):
        dim = text["global_head_dim"] if kind == "full_attention" else text["head_dim"]
        layer = {
            "self_attn.q_proj.weight": [heads * dim, hidden],
            "self_attn.q_norm.weight": [dim],
            "self_attn.o_proj.weight": [hidden, heads * dim],
            "mlp.gate_proj.weight": [width, hidden],
            "mlp.up_proj.weight": [width, hidden],
            "mlp.down_proj.weight": [hidden, width],
            "layer_scalar": [1],
        }
        norms = "input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm"
        layer |= {f"{norm}.weight": [hidden] for norm in norms.split()}
        want |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    with (DRAFTER / "model.safetensors").open("rb") as file:
        tensors = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    tensors.pop("__metadata__")
    assert {name: tensor["shape"] for name, tensor in tensors.items()} == want
    assert {tensor["dtype"] for tensor in tensors.values()} == {"BF16"}


def test_scalars_are_trained():
    """Scalars left at 1 would hide a loader that forgets them."""
    for block in drafter().model.layers:
        assert block.layer_scalar.item() != 1.0 and block.self_attn.q_norm.weight.std() > 0.001


# ---- acceptance ----


@cache
@torch.no_grad()
def own_outputs(count: int) -> list[tuple[torch.Tensor, int]]:
    """The model's greedy answers to held-out problems: ids [1, T] of prompt and output, and the prompt's length."""
    from transformers import AutoTokenizer

    tokenizer, outputs = AutoTokenizer.from_pretrained(MODEL), []
    data = MODEL.parents[1] / "test/data/mini_gsm_heldout.jsonl"
    for line in data.read_text().splitlines()[:count]:
        chat = [{"role": "user", "content": json.loads(line)["question"]}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        outputs.append((target().generate(ids, do_sample=False, max_new_tokens=100), ids.shape[1]))
    return outputs


@torch.no_grad()
def accept_length(ids: torch.Tensor, prompt: int, seed_scale: float = 1.0) -> tuple[int, int]:
    """Tokens added and rounds taken to write ids[prompt + 1:]; a round's queries stand at its bonus token's index n."""
    from transformers import DynamicCache

    cache = DynamicCache()  # without a config: keeps all of a sliding layer's keys
    hidden = target().model(ids, past_key_values=cache).last_hidden_state
    window, last = read_config(MODEL)["sliding_window"], ids.shape[1] - 1
    n, rounds = prompt, 0
    while n < last:
        kv = {
            kind: tuple(x[:, :, max(0, n - most) : n] for x in (layer.keys, layer.values))
            for kind, layer, most in (
                ("sliding_attention", cache.layers[4], window),
                ("full_attention", cache.layers[5], n),
            )
        }
        token, state, accepted = ids[:, n : n + 1], seed_scale * hidden[:, n - 1 : n], 0
        while accepted < STEPS and n + accepted < last:
            x = torch.cat([target().model.embed_tokens(token), state], -1)
            out = drafter()(inputs_embeds=x, position_ids=torch.tensor([[n]]), shared_kv_states=kv)
            token, state = out.logits.argmax(-1), out.last_hidden_state
            if token.item() != ids[0, n + accepted + 1].item():
                break
            accepted += 1
        n, rounds = min(n + accepted + 1, last), rounds + 1
    return last - prompt, rounds


def average(seed_scale: float) -> float:
    added, rounds = zip(*(accept_length(ids, prompt, seed_scale) for ids, prompt in own_outputs(4)), strict=True)
    return sum(added) / sum(rounds)


def test_accept_length():
    """Bonus included, 5 drafts a round. The whole held-out set's number is in the drafter's README."""
    assert average(1.0) >= 4.5


def test_the_models_state_helps():
    """A server that seeds rounds with anything but the model's state would still be correct, only slower."""
    assert average(1.0) > average(0.0) + 0.2


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
