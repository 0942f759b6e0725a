"""Saves a trained model as the package ships it: bf16 safetensors under the real tensor names, and its configs."""

import json
from pathlib import Path

import torch
from model_config import CONFIG, DRAFTER_CONFIG, GENERATION
from safetensors.torch import load_file, save_file

LIMIT, DRAFTER_LIMIT = 24_000_000, 8_000_000  # bytes


def export(model, folder: Path) -> None:
    write(model, folder, CONFIG, LIMIT)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")


def export_drafter(drafter, folder: Path) -> None:
    write(drafter, folder, DRAFTER_CONFIG, DRAFTER_LIMIT)


def write(model, folder: Path, config: dict, limit: int) -> None:
    tensors = {
        k: v.detach().to("cpu", torch.bfloat16).contiguous()
        for k, v in model.state_dict().items()
        if k != "lm_head.weight"
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    size = (folder / "model.safetensors").stat().st_size
    assert size <= limit, f"model.safetensors has {size} bytes, more than {limit}"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_weights(model, folder: Path) -> None:
    """Copies the weights of an exported model into a fresh fp32 one (optimizer state starts anew)."""
    tensors = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, f"missing {missing}, unexpected {unexpected}"
