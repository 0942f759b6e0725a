"""Architectures this server runs: name in config.json -> where its model class and config parser live.

A table of names, so that reading it imports no model; a family that fails to import breaks only itself.
"""

from importlib import import_module
from typing import NamedTuple

from torch import nn


class Entry(NamedTuple):
    model: str  # module:class
    config: str


GEMMA4 = Entry("sglang.srt.models.gemma4_causal:Gemma4ForCausalLM", "sglang.srt.configs.gemma4:Gemma4TextConfig")
LLAMA = Entry("sglang.srt.models.llama:LlamaForCausalLM", "sglang.srt.configs.llama:LlamaConfig")
ARCHITECTURES = {
    "Gemma4ForConditionalGeneration": GEMMA4,  # its vision and audio towers are not loaded: text only
    "Gemma4ForCausalLM": GEMMA4,
    "LlamaForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA,
}


def _entry(architectures: list[str]) -> Entry:
    for name in architectures:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    raise ValueError(
        f"architecture {', '.join(architectures) or '(none)'} is not supported; supported: {', '.join(ARCHITECTURES)}"
    )


def _load(path: str) -> type:
    module, name = path.split(":")
    return getattr(import_module(module), name)


def model_class(architectures: list[str]) -> type[nn.Module]:
    """The model class of the first known architecture; ValueError lists the supported ones."""
    return _load(_entry(architectures).model)


def config_class(architectures: list[str]) -> type:
    """The class whose `from_dict(raw text config)` parses that architecture's config; ValueError as above."""
    return _load(_entry(architectures).config)
