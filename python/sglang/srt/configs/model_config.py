"""ModelConfig and DrafterConfig: what a checkpoint folder says about its model, read once and frozen. They open JSON
files only, run no code from the folder and know nothing of devices or weights."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sglang.srt.configs.architectures import config_class, drafter_config_class
from sglang.srt.configs.config_file import architectures, check_plain, override, read_config, read_json, text_part
from sglang.srt.configs.generation_config import eos_token_ids, never_sampled
from sglang.srt.configs.kv_layers import KVLayerSpec
from sglang.srt.model_loader.checkpoint import stored_dtype

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
    never_sampled: list[int]  # token ids
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

        `json_override` is put into config.json (see override()). `context_length` None means the model's own
        limit; `router_logits_dtype` is model or float32. Raises ValueError with one line for anything that cannot be
        served.
        """
        raw = read_config(path, "model path")
        changes = json_override or {}
        names = architectures({**raw, **changes})
        parser = config_class(names)
        raw = override(raw, changes, parser.FIELDS)
        check_plain(raw, Path(path))
        text_config = text_part(raw)
        text = parser.from_dict(text_config)
        if router_logits_dtype == "float32":
            if text.num_experts == 0:
                raise ValueError("--router-logits-dtype float32: this model has no expert router; leave it out")
            text = replace(text, float32_router_logits=True)
        generation = Path(path) / "generation_config.json"
        generation_config = read_json(generation) if generation.is_file() else {}
        ends = eos_token_ids(raw, text_config, generation_config)
        torch_dtype = _dtype(dtype, raw, Path(path))
        return cls(
            path=path,
            architectures=names,
            model_type=str(raw.get("model_type")),
            text_config=text_config,
            text=text,
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            context_len=_context_len(context_length, text.max_position),
            dtype=DTYPE_NAMES[torch_dtype],
            torch_dtype=torch_dtype,
            eos_token_ids=ends,
            never_sampled=never_sampled(generation_config, ends, text.vocab_size),
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
        raw = read_config(path, "draft model path")
        names = architectures(raw)
        parser = drafter_config_class(names)
        check_plain(raw, Path(path))
        return cls(path, names, parser.from_dict(raw))


def _context_len(wanted: int | None, limit: int) -> int:
    if wanted is None:
        return limit
    if not 1 <= wanted <= limit:
        raise ValueError(f"context length {wanted} is out of range: this model takes 1 to {limit} tokens")
    return wanted


def _dtype(wanted: str, raw: dict, folder: Path) -> torch.dtype:
    """`wanted`, or for "auto" what config.json says (`dtype`, in older files `torch_dtype`; not inside a text_config),
    else the type of the stored weights, bfloat16 without any."""
    if wanted == "auto":
        sources = (raw.get("dtype"), raw.get("torch_dtype"), stored_dtype(folder), "bfloat16")
        wanted = next(name for name in sources if name is not None)
    if not isinstance(wanted, str) or wanted not in DTYPES:
        raise ValueError(f"dtype {wanted!r} is not supported; supported: auto, {', '.join(DTYPES)}")
    return DTYPES[wanted]
