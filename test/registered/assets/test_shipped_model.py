"""The shipped model's files: size, tensor names, architecture, tokenizer, chat template; and the word problem sets."""

import importlib.util
import json
import re
import struct
import sys
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sglang
from sglang.test.ci.ci_register import register_cpu_ci

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts/train_model"))
import word_problems
from make_word_problems import main as write_problems
from word_problems.core import HELD_OUT, TEMPLATES, make

register_cpu_ci(est_time=20, suite="base-a-test-cpu")

PACKAGE = Path(sglang.__path__[0])
MODEL = PACKAGE / "assets/gemma-4-mini-it"
DATA = PACKAGE / "test/data"
SPECIAL = {
    "<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "<|tool>": 46, "<tool|>": 47, "<|tool_call>": 48,
    "<tool_call|>": 49, "<|tool_response>": 50, "<tool_response|>": 51, '<|"|>': 52, "<|think|>": 98,
    "<|channel>": 100, "<channel|>": 101, "<|turn>": 105, "<turn|>": 106, "\n": 107,
}  # fmt: skip


def config() -> dict:
    return json.loads((MODEL / "config.json").read_text())


@cache
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


def header() -> dict:
    with (MODEL / "model.safetensors").open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        tensors = json.loads(file.read(size))
    tensors.pop("__metadata__", None)
    return tensors


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


# ---- the model's files ----


def test_sizes():
    assert (MODEL / "model.safetensors").stat().st_size <= 24_000_000
    assert sum(f.stat().st_size for f in DATA.iterdir()) < 800_000
    assert {"README.md", "LICENSE", "generation_config.json", "tokenizer.json"} <= {f.name for f in MODEL.iterdir()}


def test_architecture():
    c = config()
    assert (c["architectures"], c["model_type"]) == (["Gemma4ForCausalLM"], "gemma4_text")
    assert (c["head_dim"], c["global_head_dim"], c["attention_k_eq_v"]) == (256, 512, True)
    assert set(c["layer_types"]) == {"sliding_attention", "full_attention"} and c["layer_types"][-1] == "full_attention"
    assert c["enable_moe_block"] and c["num_experts"] >= 16 and c["top_k_experts"] >= 4
    assert c["tie_word_embeddings"] and c["final_logit_softcapping"] == 30.0 and c["sliding_window"] <= 128
    assert json.loads((MODEL / "generation_config.json").read_text())["eos_token_id"] == [1, 106, 50]


def test_tensor_names_and_shapes():
    c, tensors = config(), header()
    hidden, heads, experts, width = (
        c["hidden_size"],
        c["num_attention_heads"],
        c["num_experts"],
        c["moe_intermediate_size"],
    )
    want = {"model.embed_tokens.weight": [c["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for i, kind in enumerate(c["layer_types"]):
        full = kind == "full_attention"
        dim = c["global_head_dim"] if full else c["head_dim"]
        kv = dim * (c["num_global_key_value_heads"] if full else c["num_key_value_heads"])
        layer = {
            "self_attn.q_proj.weight": [heads * dim, hidden],
            "self_attn.k_proj.weight": [kv, hidden],
            "self_attn.o_proj.weight": [hidden, heads * dim],
            "self_attn.q_norm.weight": [dim],
            "self_attn.k_norm.weight": [dim],
            "mlp.gate_proj.weight": [c["intermediate_size"], hidden],
            "mlp.up_proj.weight": [c["intermediate_size"], hidden],
            "mlp.down_proj.weight": [hidden, c["intermediate_size"]],
            "router.proj.weight": [experts, hidden],
            "router.scale": [hidden],
            "router.per_expert_scale": [experts],
            "experts.gate_up_proj": [experts, 2 * width, hidden],
            "experts.down_proj": [experts, hidden, width],
            "layer_scalar": [1],
        }
        norms = """input_layernorm post_attention_layernorm pre_feedforward_layernorm pre_feedforward_layernorm_2
            post_feedforward_layernorm post_feedforward_layernorm_1 post_feedforward_layernorm_2"""
        layer |= {f"{norm}.weight": [hidden] for norm in norms.split()}
        if not full:  # a full layer's V is its K projection
            layer["self_attn.v_proj.weight"] = [kv, hidden]
        want |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    assert {name: tensor["shape"] for name, tensor in tensors.items()} == want
    assert {tensor["dtype"] for tensor in tensors.values()} == {"BF16"}


def test_scalars_are_trained():
    """Scalars left at 1 would hide a loader that forgets them."""
    from safetensors import safe_open

    with safe_open(MODEL / "model.safetensors", "pt") as file:
        for i in range(config()["num_hidden_layers"]):
            assert file.get_tensor(f"model.layers.{i}.layer_scalar").item() != 1.0
            for name in ("router.scale", "router.per_expert_scale", "input_layernorm.weight"):
                assert file.get_tensor(f"model.layers.{i}.{name}").float().std() > 0.01


# ---- the tokenizer ----


def test_special_token_ids():
    ids = tokenizer().get_vocab()
    assert {token: ids[token] for token in SPECIAL} == SPECIAL
    assert len(ids) == config()["vocab_size"] and sum(token.startswith("<0x") for token in ids) == 256
    assert tokenizer()("<|turn>user\n", add_special_tokens=False)["input_ids"][0] == 105


def test_bos_is_added_once():
    assert tokenizer()("Hi")["input_ids"].count(2) == 1
    assert tokenizer()("Hi", add_special_tokens=False)["input_ids"].count(2) == 0


@pytest.mark.parametrize("text", ["$15", "1,200", "x=3+44", "2024-11-24", "70% of 305.", "#### 999"])
def test_digits_are_single_tokens(text):
    tokens = tokenizer().tokenize(text)
    assert [t for t in tokens if any(c.isdigit() for c in t)] == [c for c in text if c.isdigit()]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"])))
def test_text_survives_the_round_trip(text):
    """All but U+2581, which stands for a space as in Gemma's tokenizer; special tokens would be read as such."""
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    if not set(ids) & set(range(107)):
        assert tokenizer().decode(ids) == text


# ---- the chat template ----


def render(messages, **kwargs) -> str:
    return tokenizer().apply_chat_template(messages, tokenize=False, **kwargs)


def test_turns():
    messages = [
        {"role": "system", "content": " You are terse. "},
        {"role": "user", "content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]},
        {"role": "assistant", "content": "<|channel>thought\nEasy.\n<channel|>4"},
        {"role": "user", "content": "And 3 + 3?"},
    ]
    want = (
        "<bos><|turn>system\nYou are terse.<turn|>\n<|turn>user\n2 +2?<turn|>\n<|turn>model\n4<turn|>\n"
        "<|turn>user\nAnd 3 + 3?<turn|>\n<|turn>model\n"
    )
    assert render(messages, add_generation_prompt=True) == want
    messages[0]["role"] = "developer"
    assert render(messages, add_generation_prompt=True) == want


def test_tools_and_thinking():
    """The worked example of Gemma 4's format."""
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "City"}},
        "required": ["city"],
    }
    tool = {
        "type": "function",
        "function": {"name": "get_weather", "description": "Get the weather", "parameters": parameters},
    }
    messages = [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "Weather in Paris?"},
        {
            "role": "assistant",
            "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}],
        },
        {"role": "tool", "name": "get_weather", "content": "20 C"},
        {"role": "assistant", "content": "It is 20 C."},
    ]
    want = (
        "<bos><|turn>system\n<|think|>\nYou are terse."
        '<|tool>declaration:get_weather{description:<|"|>Get the weather<|"|>,'
        'parameters:{properties:{city:{description:<|"|>City<|"|>,type:<|"|>STRING<|"|>}},required:[<|"|>city<|"|>],'
        'type:<|"|>OBJECT<|"|>}}<tool|><turn|>\n<|turn>user\nWeather in Paris?<turn|>\n<|turn>model\n'
        '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>'
        '<|tool_response>response:get_weather{value:<|"|>20 C<|"|>}<tool_response|>It is 20 C.<turn|>\n'
    )
    assert render(messages, tools=[tool], enable_thinking=True) == want
    # After a tool's result the model goes on in its own turn.
    assert render(messages[:4], add_generation_prompt=True).endswith("<tool_response|>")


@pytest.mark.parametrize(
    "bad", [{"role": "robot", "content": "Hi"}, {"role": "user", "content": [{"type": "image", "url": "x"}]}]
)
def test_unreadable_messages_are_errors(bad):
    with pytest.raises(Exception, match="Unknown role robot|text only"):
        render([bad])


# ---- the problems ----


def check_chain(answer: str) -> None:
    """Every equation holds, the last one gives the answer, and no number leaves what the model knows."""
    steps, final = answer.rsplit("\n#### ", 1)
    equations = re.findall(r"\d+(?: [-+*/] \d+)*(?: = \d+(?: [-+*/] \d+)*)+", steps)
    assert equations
    for equation in equations:
        assert len({eval(side) for side in equation.split(" = ")}) == 1, equation
    assert equations[-1].rsplit(" ", 1)[1] == final
    assert max(map(int, re.findall(r"\d+", answer))) <= 999


@pytest.mark.parametrize("name", TEMPLATES)
def test_template(name):
    import random

    rng = random.Random(name)
    made = [make(name, rng, test_names=i % 2 == 0) for i in range(40)]
    for problem in made:
        check_chain(problem.answer)
        assert problem.question.rstrip().endswith(("?", "."))
    assert len({problem.question for problem in made}) >= 35


@pytest.mark.parametrize(("name", "count"), [("mini_gsm_seen.jsonl", 500), ("mini_gsm_heldout.jsonl", 204)])
def test_sets_have_gsm8k_form(name, count):
    rows = read(name)
    assert len(rows) == count and len({row["question"] for row in rows}) == count
    for row in rows:
        check_chain(row["answer"])
    held_out = {row["template"] for row in rows} & HELD_OUT
    assert held_out == (HELD_OUT if name == "mini_gsm_heldout.jsonl" else set())


def test_sets_share_nothing_with_training():
    training = list(islice(word_problems.problems(seed=99), 30_000))
    assert not any(problem.is_test or problem.template in HELD_OUT for problem in training)
    questions = {problem.question for problem in training}
    seen = read("mini_gsm_seen.jsonl")
    assert not questions & {row["question"] for row in seen + read("mini_gsm_heldout.jsonl")}

    def numbers(template, question):
        return template, tuple(sorted(re.findall(r"\d+", question)))

    assert not {numbers(p.template, p.question) for p in training} & {
        numbers(r["template"], r["question"]) for r in seen
    }


@pytest.mark.parametrize(
    ("split", "count", "seed", "name"),
    [
        ("seen", 500, 1, "mini_gsm_seen.jsonl"),
        ("held-out", 204, 1, "mini_gsm_heldout.jsonl"),
        ("train", 5, 3, "mini_gsm_few_shot.jsonl"),
    ],
)
def test_generator_makes_the_shipped_sets_again(tmp_path, split, count, seed, name):
    out = tmp_path / name
    write_problems(["--split", split, "--count", str(count), "--seed", str(seed), "--template", "--out", str(out)])
    assert out.read_text() == (DATA / name).read_text()


def test_gsm_symbolic_without_reasoning_gym(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(SystemExit, match="pip install reasoning-gym"):
        write_problems(["--split", "gsm-symbolic", "--count", "1"])


def test_the_generator_is_no_part_of_the_package():
    assert importlib.util.find_spec("sglang.test.word_problems") is None
    assert not Path(word_problems.__file__).is_relative_to(PACKAGE)


def test_cli_refuses_a_count_of_zero(capsys):
    with pytest.raises(SystemExit):
        write_problems(["--count", "0"])
    assert "at least 1" in capsys.readouterr().err


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
