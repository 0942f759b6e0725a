"""A checkpoint's fields change our logits as they change transformers', or are refused by name: one row a field."""

import json
import sys
from pathlib import Path

import pytest
import torch

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_loader.loader import load_model
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.paged_harness import PagedHarness
from sglang.test.tiny_models import VOCAB, F, S, load_oracle, make_tiny_gemma4

register_cpu_ci(est_time=12, suite="base-a-test-cpu")

FP32_BOUND = 1e-5  # largest error over the reference's largest logit
PROMPT = torch.randint(6, VOCAB, (30,), generator=torch.Generator().manual_seed(1)).tolist()
TWELVE = {"num_hidden_layers": 12, "layer_types": ([S] * 5 + [F]) * 2}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def our_logits(folder: Path) -> torch.Tensor:
    config = ModelConfig.load(str(folder))
    model = load_model(config, "auto", torch.device("cpu"))
    return PagedHarness(model, config).step({2: PROMPT})[2]


def their_logits(folder: Path) -> torch.Tensor:
    return load_oracle(folder, torch.float32)(torch.tensor([PROMPT])).logits[0]


def assert_same(got: torch.Tensor, want: torch.Tensor) -> None:
    assert torch.isfinite(got).all()
    assert ((got - want).abs().max() / want.abs().max()).item() < FP32_BOUND


def edit(folder: Path, **values) -> dict:
    """Set fields of config.json, those of a wrapper's text_config as `text_...`; the value ... takes one out."""
    raw = json.loads((folder / "config.json").read_text())
    for name, value in values.items():
        place, name = (
            (raw["text_config"], name[5:]) if name.startswith("text_") and "text_config" in raw else (raw, name)
        )
        if value is ...:
            del place[name]
        else:
            place[name] = value
    (folder / "config.json").write_text(json.dumps(raw))
    return raw


@pytest.mark.parametrize("variant", ["dense_k_eq_v", "moe_top2", "ple_shared_double_wide"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_transformers_saves_of_twelve_layers(tmp_path, variant, wrapped):
    """It writes per_layer_config, keys padded with zeros, and no global_head_dim."""
    make_tiny_gemma4(tmp_path, variant, torch.float32, wrapped=wrapped, **TWELVE)
    raw = json.loads((tmp_path / "config.json").read_text())
    text = raw["text_config"] if wrapped else raw
    assert text["per_layer_config"].keys() == {"05", "11"} and "global_head_dim" not in text
    assert_same(our_logits(tmp_path), their_logits(tmp_path))


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


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
