"""Architectures this server runs, and drafters: name in config.json -> where its model class and config parser live.

A table of names, so that reading it imports no model; a family that fails to import breaks only itself.
"""

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import nn


class Entry(NamedTuple):
    model: str  # module:class
    config: str


GEMMA4 = Entry("sglang.srt.models.gemma4_causal:Gemma4ForCausalLM", "sglang.srt.configs.gemma4:Gemma4TextConfig")
LLAMA = Entry("sglang.srt.models.llama:LlamaForCausalLM", "sglang.srt.configs.llama:LlamaConfig")
ARCHITECTURES = {
    "Gemma4ForConditionalGeneration": GEMMA4,  # its vision and audio towers are not loaded: text only
    "Gemma4ForCausalLM": GEMMA4,
    "Gemma4UnifiedForConditionalGeneration": GEMMA4,  # the 12B, whose other parts are not loaded either
    "Gemma4UnifiedForCausalLM": GEMMA4,
    "LlamaForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA,
}
# Models that only draft for one of the above.
GEMMA4_DRAFTER = Entry(
    "sglang.srt.models.gemma4_mtp:Gemma4AssistantForCausalLM",
    "sglang.srt.configs.gemma4_assistant:Gemma4AssistantConfig",
)
DRAFTERS = {"Gemma4AssistantForCausalLM": GEMMA4_DRAFTER, "Gemma4UnifiedAssistantForCausalLM": GEMMA4_DRAFTER}


def _entry(architectures: list[str]) -> Entry:
    for name in architectures:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
        if name in DRAFTERS:
            raise ValueError(
                f"{name} is a drafter and can't be served alone: give it with --speculative-draft-model-path, and the "
                f"model it drafts for with --model-path"
            )
    raise ValueError(f"architecture {_names(architectures)} is not supported; supported: {', '.join(ARCHITECTURES)}")


def _drafter_entry(architectures: list[str]) -> Entry:
    for name in architectures:
        if name in DRAFTERS:
            return DRAFTERS[name]
    raise ValueError(
        f"architecture {_names(architectures)} is not supported as a drafter; supported: {', '.join(DRAFTERS)}"
    )


def _names(architectures: list[str]) -> str:
    return ", ".join(architectures) or "(none)"


def _load(path: str) -> type:
    module, name = path.split(":")
    return getattr(import_module(module), name)


def check_known(architectures: list[str], drafter: bool = False) -> None:
    """ValueError, which lists the supported ones, for a model (or a drafter) that is not served."""
    _drafter_entry(architectures) if drafter else _entry(architectures)


def model_class(architectures: list[str]) -> "type[nn.Module]":
    """The model class of the first known architecture; ValueError lists the supported ones."""
    return _load(_entry(architectures).model)


def config_class(architectures: list[str]) -> type:
    """The class whose `from_dict(raw text config)` parses that architecture's config; ValueError as above."""
    return _load(_entry(architectures).config)


def drafter_class(architectures: list[str]) -> "type[nn.Module]":
    """model_class for drafters; its instances are made with (DrafterConfig, the target's ModelConfig, tp)."""
    return _load(_drafter_entry(architectures).model)


def drafter_config_class(architectures: list[str]) -> type:
    """config_class for drafters; `from_dict` takes the whole raw config."""
    return _load(_drafter_entry(architectures).config)
