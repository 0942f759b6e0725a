"""Loading a drafter: transformers' own folder fills every element; what does not fit its target or can't be is told."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sglang.srt.configs.model_config import DrafterConfig, ModelConfig
from sglang.srt.model_loader.loader import load_drafter, load_model
from sglang.srt.model_loader.weight_map import checkpoint_views
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.tiny_models import make_tiny_assistant, make_tiny_gemma4

register_cpu_ci(est_time=6, suite="base-a-test-cpu")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    make_tiny_gemma4(root / "target", "moe_top2")
    make_tiny_assistant(root / "dense", "moe_top2")
    make_tiny_assistant(root / "centroids", "moe_top2", ordered=True)
    return root


@pytest.fixture(scope="module")
def target(originals):
    config = ModelConfig.load(str(originals / "target"))
    return config, load_model(config, "auto", CPU)


@pytest.fixture
def folder(originals, tmp_path) -> Path:
    """A copy of the drafter with a centroid head, to be spoiled."""
    return Path(shutil.copytree(originals / "centroids", tmp_path / "drafter"))


def load(folder: Path | DrafterConfig, target, load_format: str = "auto", dtype=torch.bfloat16) -> torch.nn.Module:
    drafter = str(folder) if isinstance(folder, Path) else folder
    return load_drafter(drafter, *target, load_format, dtype, CPU)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """A copy: the originals are mapped from the file that a test then rewrites."""
    return {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("name", ["dense", "centroids"])
def test_every_tensor_of_the_file_is_used(originals, target, name):
    want = tensors(originals / name)
    assert len(want) == {"dense": 48, "centroids": 50}[name]
    model = load(originals / name, target)
    views = checkpoint_views(model)
    assert views.keys() == want.keys()
    for tensor, view in views.items():
        assert view.dtype == want[tensor].dtype and torch.equal(view, want[tensor]), tensor
    stored = [*model.parameters(), *model.buffers()]  # the target's embedding and tables are not among them
    assert sum(t.numel() for t in stored) == sum(t.numel() for t in want.values())
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.embed_tokens_of_target is target[1].model.embed_tokens


def test_a_config_already_read(originals, target):
    config = DrafterConfig.load(str(originals / "dense"))
    assert torch.equal(load(config, target).model.norm.weight, tensors(originals / "dense")["model.norm.weight"])


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_differs_from_the_embedding_is_used(folder, target, tied):
    """As in transformers; no step reads the embedding, so it takes no memory."""
    weights = tensors(folder)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].roll(1, 0)
    save_file(weights, folder / "model.safetensors")
    change_config(folder, tie_word_embeddings=tied)
    model = load(folder, target)
    assert torch.equal(model.model.embed_tokens.weight, weights["lm_head.weight"])
    assert len(checkpoint_views(model)) == 50
    del weights["model.embed_tokens.weight"]
    save_file(weights, folder / "model.safetensors")
    assert torch.equal(load(folder, target).model.embed_tokens.weight, weights["lm_head.weight"])


def test_an_untied_drafter_without_a_head(folder, target):
    change_config(folder, tie_word_embeddings=False)
    with pytest.raises(ValueError, match="tie_word_embeddings is false, but there is no lm_head.weight"):
        load(folder, target)


def change_config(folder: Path, **values) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | values))


def test_other_types_and_a_copy_of_the_head(folder, target):
    want = checkpoint_views(load(folder, target))
    weights = {name: t.float() if t.is_floating_point() else t.int() for name, t in tensors(folder).items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors")
    for name, view in checkpoint_views(load(folder, target)).items():
        assert view.dtype == want[name].dtype and torch.equal(view, want[name]), name


def test_dummy(folder, target):
    """normal(0, 0.02), norms and scales 1, token_ordering a permutation; nothing read; the same every time."""
    (folder / "model.safetensors").unlink()
    model = load(folder, target, "dummy")
    for name, view in checkpoint_views(model).items():
        assert torch.equal(view, checkpoint_views(load(folder, target, "dummy"))[name]), name
        if name == "masked_embedding.token_ordering":
            assert sorted(view.tolist()) == list(range(512)) != view.tolist()
        elif view.dim() == 1:
            assert (view == 1).all(), name
        else:
            assert view.float().std().item() == pytest.approx(0.02, rel=0.1), name


def expect_error(folder: Path, target, *parts: str, **kwargs) -> None:
    with pytest.raises(ValueError) as caught:
        load(folder, target, **kwargs)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_misshapen_and_unexpected_in_one_error(folder, target):
    weights = tensors(folder)
    del weights["model.layers.3.layer_scalar"], weights["post_projection.weight"]
    weights["pre_projection.weight"] = torch.ones(32, 64)
    weights["model.layers.0.self_attn.k_proj.weight"] = torch.ones(32, 32)
    weights["masked_embedding.token_ordering"] = torch.ones(512)
    save_file(weights, folder / "model.safetensors")
    expect_error(
        folder,
        target,
        "(5 tensors)",
        "missing model.layers.3.layer_scalar [1]",
        "missing post_projection.weight [64, 32]",
        "pre_projection.weight has shape [32, 64], expected [32, 128]",
        "unexpected model.layers.0.self_attn.k_proj.weight",
        "masked_embedding.token_ordering has type F32, which is not supported",
    )


@pytest.mark.parametrize(("place", "value"), [(3, 512), (3, -1), (3, None)])
def test_token_ordering_must_be_a_permutation(folder, target, place, value):
    weights = tensors(folder)
    order = weights["masked_embedding.token_ordering"]
    order[place] = order[place + 1] if value is None else value
    save_file(weights, folder / "model.safetensors")
    expect_error(folder, target, "masked_embedding.token_ordering is no permutation of the 512 token ids")


def test_a_head_the_config_does_not_name(folder, target):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "use_ordered_embeddings": False}))
    expect_error(folder, target, "(2 tensors)", "unexpected masked_embedding.centroids.weight")


def test_refusals(originals, folder, target, tmp_path):
    expect_error(folder, target, "a drafter in float32 can't read the KV of a target in bfloat16", dtype=torch.float32)
    expect_error(originals / "target", target, "Gemma4ForCausalLM is not supported as a drafter")
    expect_error(folder, target, "load format 'gguf' is not supported", load_format="gguf")
    make_tiny_assistant(tmp_path / "other", "small_window")
    for load_format in ("auto", "dummy"):
        expect_error(
            tmp_path / "other",
            target,
            "the drafter does not fit the target: sliding window: 5, target 16",
            load_format=load_format,
        )


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
