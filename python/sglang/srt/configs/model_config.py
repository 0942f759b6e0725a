"""ModelConfig and DrafterConfig: what a checkpoint folder says about its model, read once and frozen. They open JSON
files only, run no code from the folder and know nothing of devices or weights."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sglang.srt.configs import fields
from sglang.srt.configs.kv_layers import KVLayerSpec
from sglang.srt.models.registry import config_class, drafter_config_class

if TYPE_CHECKING:
    from sglang.srt.configs.gemma4 import Gemma4TextConfig
    from sglang.srt.configs.gemma4_assistant import Gemma4AssistantConfig
    from sglang.srt.configs.llama import LlamaConfig

__all__ = ["DrafterConfig", "KVLayerSpec", "ModelConfig"]

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
    "float32": torch.float32,
    "float": torch.float32,
}
DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
MAX_JSON_BYTES = 16 << 20  # config.json is a few kB; this only keeps a wrong file from filling memory


@dataclass(frozen=True)
class ModelConfig:
    """`text_config` is the raw JSON of the text model, `text` the same parsed for the model class."""

    path: str
    architectures: list[str]
    model_type: str
    text_config: dict
    text: "Gemma4TextConfig | LlamaConfig"
    vocab_size: int
    hidden_size: int
    context_len: int  # tokens of prompt and output together
    dtype: str  # bfloat16, float16 or float32
    torch_dtype: torch.dtype
    eos_token_ids: list[int]
    generation_config: dict
    sliding_window: int | None  # keys of a sliding layer, the query's own included; None: no layer slides
    kv_layers: list[KVLayerSpec]  # only layers that own KV

    @classmethod
    def load(
        cls,
        path: str,
        json_override: dict | None = None,
        context_length: int | None = None,
        dtype: str = "auto",
        router_logits_dtype: str = "model",
    ) -> "ModelConfig":
        """Read `path`/config.json and, if there, generation_config.json.

        `json_override` is merged into config.json, objects key by key. `context_length` None means the model's own
        limit; `router_logits_dtype` is model or float32. Raises ValueError with one line for anything that cannot be
        served.
        """
        raw = merge(_read_config(path, "model path"), json_override or {})
        architectures = _architectures(raw)
        parser = config_class(architectures)
        text_config = fields.mapping(raw, "text_config") or raw
        text = parser.from_dict(text_config)
        if router_logits_dtype == "float32":
            if text.num_experts == 0:
                raise ValueError("--router-logits-dtype float32: this model has no expert router; leave it out")
            text = replace(text, float32_router_logits=True)
        generation = Path(path) / "generation_config.json"
        generation_config = read_json(generation) if generation.is_file() else {}
        torch_dtype = _dtype(dtype, raw, text_config)
        return cls(
            path=path,
            architectures=architectures,
            model_type=str(raw.get("model_type")),
            text_config=text_config,
            text=text,
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            context_len=_context_len(context_length, text.max_position),
            dtype=DTYPE_NAMES[torch_dtype],
            torch_dtype=torch_dtype,
            eos_token_ids=_eos_token_ids(raw, text_config, generation_config),
            generation_config=generation_config,
            sliding_window=text.window,
            kv_layers=text.kv_layers,
        )


@dataclass(frozen=True)
class DrafterConfig:
    """A drafter's folder. Dtype, context and KV are its target's; `assistant` is what config.json says."""

    path: str
    architectures: list[str]
    assistant: "Gemma4AssistantConfig"

    @classmethod
    def load(cls, path: str) -> "DrafterConfig":
        """Read `path`/config.json. Raises ValueError with one line for anything that is no drafter we can run."""
        raw = _read_config(path, "draft model path")
        architectures = _architectures(raw)
        return cls(path, architectures, drafter_config_class(architectures).from_dict(raw))


def _read_config(path: str, what: str) -> dict:
    """The folder's config.json; `what` names the path in an error."""
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{what} {path!r} is not a folder; give a local folder in Hugging Face format")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{what} {path!r} has no config.json; give a local folder in Hugging Face format")
    return read_json(folder / "config.json")


def _architectures(raw: dict) -> list[str]:
    names = raw.get("architectures")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"config.json: architectures must be a list of names, got {names!r}")
    return names


def read_json(path: Path) -> dict:
    """The JSON object in `path`; ValueError names the file and the place of the mistake."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} is {path.stat().st_size} bytes, which is no config file (limit {MAX_JSON_BYTES})")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def merge(base: dict, override: dict) -> dict:
    """`base` with `override`'s values; where both hold an object, merged inside it."""
    merged = dict(base)
    for key, value in override.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _context_len(wanted: int | None, limit: int) -> int:
    if wanted is None:
        return limit
    if not 1 <= wanted <= limit:
        raise ValueError(f"context length {wanted} is out of range: this model takes 1 to {limit} tokens")
    return wanted


def _dtype(wanted: str, raw: dict, text_config: dict) -> torch.dtype:
    """`wanted`, or for "auto" the checkpoint's (`dtype`, in older files `torch_dtype`), bfloat16 if it says nothing."""
    if wanted == "auto":
        sources = (text_config.get("dtype"), raw.get("dtype"), text_config.get("torch_dtype"), raw.get("torch_dtype"))
        wanted = next((name for name in sources if name is not None), "bfloat16")
    if not isinstance(wanted, str) or wanted not in DTYPES:
        raise ValueError(f"dtype {wanted!r} is not supported; supported: auto, {', '.join(DTYPES)}")
    return DTYPES[wanted]


def _eos_token_ids(*sources: dict) -> list[int]:
    """Every end-of-sequence id any of the files names, ascending (copies of Gemma 4's disagree: take the union)."""
    ids: set[int] = set()
    for source in sources:
        value = source.get("eos_token_id")
        value = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in value):
            raise ValueError(f"eos_token_id must be a token id or a list of them, got {value!r}")
        ids.update(value)
    return sorted(ids)
