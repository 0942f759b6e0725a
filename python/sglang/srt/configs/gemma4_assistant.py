"""Gemma 4's MTP drafter as its config.json tells it: parsed from raw JSON, checked alone and against a target.

A drafter is a few dense Gemma 4 layers with queries only: they read the KV of the target's last layers of their kind.
"""

from dataclasses import dataclass, replace

from sglang.srt.configs import fields
from sglang.srt.configs.gemma4 import Gemma4TextConfig

# by a drafter's model_type, that of its text_config where it names none
TEXT_TYPES = {"gemma4_assistant": "gemma4_text", "gemma4_unified_assistant": "gemma4_unified_text"}
NO_DONOR = -1  # kv_layer of a drafter's layer that is not attached to a target


@dataclass(frozen=True)
class Gemma4AssistantConfig:
    """`text` describes the drafter's own layers; none owns KV, and `reading` says whose they read."""

    backbone_hidden_size: int  # hidden size of the target it was trained with
    text: Gemma4TextConfig
    use_ordered_embeddings: bool  # a centroid head instead of a dense one; the next two matter only to it
    num_centroids: int  # clusters of equal size, in which token_ordering lists the vocabulary
    centroid_intermediate_top_k: int  # clusters whose tokens get logits
    tie_word_embeddings: bool  # whether the file may do without a head

    @classmethod
    def from_dict(cls, raw: dict) -> "Gemma4AssistantConfig":
        """From the raw config.json.

        Raises ValueError naming the field when something is missing, of a wrong type or not supported.
        """
        kind = fields.one_of(raw, "model_type", None, tuple(TEXT_TYPES))
        if raw.get("text_config") is None:
            raise ValueError("config.json: field 'text_config' is missing")
        text = _text({"model_type": TEXT_TYPES[kind], **fields.mapping(raw, "text_config")})
        ordered = fields.boolean(raw, "use_ordered_embeddings", False)
        num_centroids = fields.integer(raw, "num_centroids", 2048)
        top_k = fields.integer(raw, "centroid_intermediate_top_k", 32)
        if ordered and text.vocab_size % num_centroids:
            raise ValueError(f"config.json: num_centroids {num_centroids} does not divide vocab_size {text.vocab_size}")
        if ordered and top_k > num_centroids:
            raise ValueError(f"config.json: centroid_intermediate_top_k {top_k} exceeds num_centroids {num_centroids}")
        return cls(
            backbone_hidden_size=fields.integer(raw, "backbone_hidden_size"),
            text=text,
            use_ordered_embeddings=ordered,
            num_centroids=num_centroids,
            centroid_intermediate_top_k=top_k,
            tie_word_embeddings=fields.boolean(raw, "tie_word_embeddings", True),
        )

    def reading(self, target: Gemma4TextConfig) -> Gemma4TextConfig:
        """`text` with its layers reading that target's KV. Raises ValueError as check_fits does."""
        check_fits(self, target)
        donors = target.donors
        layers = tuple(replace(layer, kv_layer=donors[layer.kind].index) for layer in self.text.layers)
        return replace(self.text, layers=layers)


def _text(raw: dict) -> Gemma4TextConfig:
    count = fields.layer_count(raw)
    if fields.integer(raw, "num_kv_shared_layers", 0, minimum=0) not in (0, count):  # 0: left to the class, as all
        raise ValueError(
            f"config.json: a drafter's layers all share KV, but num_kv_shared_layers is "
            f"{raw['num_kv_shared_layers']} of {count}"
        )
    if fields.boolean(raw, "use_double_wide_mlp", False):
        raise ValueError("config.json: use_double_wide_mlp is not supported in a drafter")
    # as if the layers had their own KV, which gives its shapes; the size of the table it has not is 0 in its file
    text = Gemma4TextConfig.from_dict({**raw, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": None})
    if text.num_experts:
        raise ValueError("config.json: enable_moe_block is not supported in a drafter")
    if text.ple_size:
        raise ValueError(
            f"config.json: hidden_size_per_layer_input must be 0 in a drafter, got {text.ple_size}"
            f"{'' if 'hidden_size_per_layer_input' in raw else ' (the default)'}"
        )
    layers = tuple(replace(layer, owns_kv=False, kv_layer=NO_DONOR) for layer in text.layers)
    return replace(text, layers=layers)


def check_fits(drafter: Gemma4AssistantConfig, target: Gemma4TextConfig) -> None:
    """ValueError, in one line with both values of all that differs, unless the drafter can read the target's
    embeddings, hidden states and KV."""
    if not isinstance(target, Gemma4TextConfig):
        raise ValueError("the drafter does not fit the target: it drafts for Gemma 4 models only")
    text, donors = drafter.text, target.donors
    pairs = {
        "backbone_hidden_size": (drafter.backbone_hidden_size, target.hidden_size),
        "vocabulary": (text.vocab_size, target.vocab_size),
    }
    for layer in text.layers:
        where = f"{layer.kind} layer {layer.index}"
        donor = donors.get(layer.kind)
        if donor is None:
            raise ValueError(
                f"the drafter does not fit the target: it has {where}, but the target's layers with KV of their own "
                f"are {', '.join(donors)} only"
            )
        pairs[f"KV heads of {where}"] = layer.num_kv_heads, donor.num_kv_heads
        pairs[f"head size of {where}"] = layer.head_dim, donor.head_dim
        pairs[f"RoPE of {layer.kind} layers"] = text.rope[layer.kind], target.rope[layer.kind]
        if layer.sliding:
            pairs["sliding window"] = text.sliding_window, target.sliding_window
    differ = [f"{what}: {mine}, target {theirs}" for what, (mine, theirs) in pairs.items() if mine != theirs]
    if differ:
        raise ValueError(f"the drafter does not fit the target: {'; '.join(differ)}")
