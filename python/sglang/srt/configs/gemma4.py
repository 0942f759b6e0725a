"""Gemma 4's text config as the model reads it: parsed from raw JSON, per-layer shapes resolved, checked."""

import logging
from dataclasses import dataclass
from typing import ClassVar

from sglang.srt.configs import fields
from sglang.srt.configs.kv_layers import KVLayerSpec
from sglang.srt.configs.rope import RopeConfig

logger = logging.getLogger(__name__)

SLIDING, FULL = "sliding_attention", "full_attention"
# transformers 5.17.0 defaults; all released sizes say the same
DEFAULT_ROPE = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
UNIFIED = "gemma4_unified_text"  # the 12B: as the dense ones, with other defaults
TEXT_TYPES = ("gemma4_text", UNIFIED)
PER_LAYER_FIELDS = ("head_dim", "num_key_value_heads")  # what a layer's object in per_layer_config may change


@dataclass(frozen=True)
class Gemma4LayerConfig:
    """What one decoder layer is. `kv_layer` is the layer whose KV it reads: itself (`owns_kv`), its donor (KV sharing),
    or in a drafter a layer of the target."""

    index: int
    sliding: bool
    head_dim: int
    num_kv_heads: int
    owns_kv: bool
    kv_layer: int
    k_eq_v: bool
    intermediate_size: int

    @property
    def kind(self) -> str:
        return SLIDING if self.sliding else FULL


@dataclass(frozen=True)
class Gemma4TextConfig:
    """Sizes of the text model. `ple_size` is hidden_size_per_layer_input, 0 = no per-layer inputs; `num_experts` 0 =
    dense only."""

    vocab_size: int
    hidden_size: int
    num_heads: int
    layers: tuple[Gemma4LayerConfig, ...]
    rope: dict[str, RopeConfig]  # by layer type
    rms_norm_eps: float
    attention_bias: bool
    sliding_window: int
    max_position: int
    final_logit_softcap: float | None
    tie_word_embeddings: bool
    ple_size: int
    ple_vocab_size: int
    num_experts: int
    top_k_experts: int
    moe_intermediate_size: int
    float32_router_logits: bool = False  # not the checkpoint's: a choice of the server (--router-logits-dtype)
    FIELDS: ClassVar[tuple[str, ...]] = (  # what from_dict reads
        "model_type", "hidden_activation", "use_bidirectional_attention", "is_causal", "attention_chunk_size",
        "num_attention_heads", "enable_moe_block", "num_experts", "top_k_experts", "final_logit_softcapping",
        "vocab_size", "hidden_size", "rms_norm_eps", "attention_bias", "sliding_window", "max_position_embeddings",
        "tie_word_embeddings", "vocab_size_per_layer_input", "moe_intermediate_size", "rope_scaling",
        "rope_parameters", "partial_rotary_factor", "hidden_size_per_layer_input", "num_hidden_layers", "layer_types",
        "sliding_window_pattern", "_sliding_window_pattern", "num_kv_shared_layers", "use_double_wide_mlp",
        "attention_k_eq_v", "intermediate_size", "per_layer_config", "head_dim", "num_key_value_heads",
        "global_head_dim", "num_global_key_value_heads",
    )  # fmt: skip

    @property
    def window(self) -> int | None:
        """Keys a sliding layer sees, the query's own included; None when no layer slides."""
        return self.sliding_window if any(layer.sliding for layer in self.layers) else None

    @property
    def kv_layers(self) -> list[KVLayerSpec]:
        return [
            KVLayerSpec(layer.index, layer.sliding, layer.num_kv_heads, layer.head_dim)
            for layer in self.layers
            if layer.owns_kv
        ]

    @property
    def donors(self) -> dict[str, Gemma4LayerConfig]:
        """By kind, the last layer with its own KV: what KV-shared layers read, and a drafter's."""
        return {layer.kind: layer for layer in self.layers if layer.owns_kv}

    @classmethod
    def from_dict(cls, raw: dict) -> "Gemma4TextConfig":
        """From the raw text config. Raw, because transformers 5.17 hides global_head_dim in per-layer objects.

        Raises ValueError naming the field when something is missing, of a wrong type or not supported.
        """
        unified = fields.one_of(raw, "model_type", TEXT_TYPES[0], TEXT_TYPES) == UNIFIED
        if unified:  # its class has no such fields, whatever a file says
            raw = {**raw, "hidden_size_per_layer_input": 0, "enable_moe_block": False}
        fields.one_of(raw, "hidden_activation", "gelu_pytorch_tanh", ("gelu_pytorch_tanh",))
        fields.one_of(raw, "use_bidirectional_attention", None, (None, "vision"))  # "vision" leaves text causal
        fields.one_of(raw, "is_causal", True, (True,))
        fields.one_of(raw, "attention_chunk_size", None, (None,))
        num_heads = fields.integer(raw, "num_attention_heads")
        layers = _layers(raw)
        for layer in layers:
            if num_heads % layer.num_kv_heads:
                raise ValueError(
                    f"config.json: {num_heads} attention heads do not divide among {layer.num_kv_heads} KV heads "
                    f"(layer {layer.index})"
                )
        moe = fields.boolean(raw, "enable_moe_block", False)
        num_experts = fields.integer(raw, "num_experts") if moe else 0
        top_k = fields.integer(raw, "top_k_experts") if moe else 0
        if top_k > num_experts:
            raise ValueError(f"config.json: top_k_experts {top_k} exceeds num_experts {num_experts}")
        ple_size = _ple_size(raw)
        softcap = raw.get("final_logit_softcapping")
        vocab_size = fields.integer(raw, "vocab_size", 262_144)
        ple_vocab_size = fields.integer(raw, "vocab_size_per_layer_input", 262_144) if ple_size else 0
        if ple_size and ple_vocab_size < vocab_size:
            raise ValueError(
                f"config.json: vocab_size_per_layer_input {ple_vocab_size} is below vocab_size {vocab_size}: some "
                "tokens would have no per-layer input"
            )
        return cls(
            vocab_size=vocab_size,
            hidden_size=fields.integer(raw, "hidden_size"),
            num_heads=num_heads,
            layers=layers,
            rope=_rope(raw, {layer.kind for layer in layers}),
            rms_norm_eps=fields.number(raw, "rms_norm_eps", 1e-6),
            attention_bias=fields.boolean(raw, "attention_bias", False),
            sliding_window=fields.integer(raw, "sliding_window", 1024 if unified else 512),
            max_position=fields.integer(raw, "max_position_embeddings", 262_144 if unified else 131_072),
            final_logit_softcap=None if softcap is None else fields.number(raw, "final_logit_softcapping"),
            tie_word_embeddings=fields.boolean(raw, "tie_word_embeddings", True),
            ple_size=ple_size,
            ple_vocab_size=ple_vocab_size,
            num_experts=num_experts,
            top_k_experts=top_k,
            moe_intermediate_size=fields.integer(raw, "moe_intermediate_size") if moe else 0,
        )


def _rope(raw: dict, kinds: set[str]) -> dict[str, RopeConfig]:
    """By kind of layer. transformers has no defaults for one kind alone, and reads no older form."""
    fields.one_of(raw, "rope_scaling", None, (None,))
    if raw.get("rope_parameters") is None:
        return {kind: RopeConfig.from_dict(DEFAULT_ROPE[kind]) for kind in kinds}
    given = fields.mapping(raw, "rope_parameters")
    rope = {}
    for kind in kinds:
        if not isinstance(given.get(kind), dict):
            raise ValueError(f"config.json: rope_parameters must hold an object {kind!r}, as layer_types does")
        values = dict(given[kind])
        if values.get("rope_type") == "proportional" and raw.get("partial_rotary_factor") is not None:
            values.setdefault("partial_rotary_factor", raw["partial_rotary_factor"])
        rope[kind] = RopeConfig.from_dict(values)
    return rope


def _ple_size(raw: dict) -> int:
    """Absent means transformers' default of 256, but an explicit null means none."""
    if "hidden_size_per_layer_input" in raw and raw["hidden_size_per_layer_input"] is None:
        return 0
    return fields.integer(raw, "hidden_size_per_layer_input", 256, minimum=0)


def _layers(raw: dict) -> tuple[Gemma4LayerConfig, ...]:
    count = fields.layer_count(raw)
    every_sixth = tuple(FULL if i % 6 == 5 else SLIDING for i in range(count))
    if raw.get("layer_types") is None:  # transformers reads no pattern for this family
        for name in ("sliding_window_pattern", "_sliding_window_pattern"):
            if raw.get(name) not in (None, 6):
                raise ValueError(f"config.json: {name} {raw[name]!r} is not read here; list layer_types")
    types = fields.layer_types(raw, count, every_sixth)
    if types[-1] != FULL:
        logger.warning("the last layer must be full_attention (as transformers has it); config.json says otherwise")
        types = (*types[:-1], FULL)

    first_shared = count - fields.integer(raw, "num_kv_shared_layers", 0, minimum=0)
    own_types = types[: max(first_shared, 0)]
    double_wide = fields.boolean(raw, "use_double_wide_mlp", False)
    k_eq_v = fields.boolean(raw, "attention_k_eq_v", False)
    width = fields.integer(raw, "intermediate_size")
    objects = _layer_objects(raw, types)
    layers = []
    for i, kind in enumerate(types):
        shape = {**_layer_shape(raw, kind, k_eq_v), **objects.get(i, {})}
        shared = i >= first_shared
        if shared and kind not in own_types:
            raise ValueError(f"config.json: layer {i} shares the KV of a {kind} layer, but none below has its own")
        layers.append(
            Gemma4LayerConfig(
                index=i,
                sliding=kind == SLIDING,
                head_dim=fields.integer(shape, "head_dim", 256, minimum=2),
                num_kv_heads=fields.integer(shape, "num_key_value_heads"),
                owns_kv=not shared,
                kv_layer=len(own_types) - 1 - own_types[::-1].index(kind) if shared else i,
                k_eq_v=k_eq_v and kind == FULL,
                intermediate_size=2 * width if double_wide and shared else width,
            )
        )
    return tuple(layers)


def _layer_objects(raw: dict, types: tuple[str, ...]) -> dict[int, dict]:
    """Layer -> what its object in per_layer_config says: how transformers 5.17 saves the sizes of full layers. Its keys
    are padded with zeros to one length. ValueError for what transformers' model can't be built from either."""
    objects: dict[int, dict] = {}
    for key, value in fields.mapping(raw, "per_layer_config").items():
        where = f"config.json: per_layer_config[{key!r}]"
        index = int(key) if key.isascii() and key.isdecimal() else -1
        if not 0 <= index < len(types) or index in objects:
            raise ValueError(f"{where} must be named after one of the layers 0 to {len(types) - 1}, each at most once")
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, got {value!r}")
        for name in value.keys() - PER_LAYER_FIELDS:
            if name not in raw or value[name] != raw[name]:
                raise ValueError(f"{where}: {name} can't differ between layers, only {', '.join(PER_LAYER_FIELDS)}")
        objects[index] = {name: value[name] for name in PER_LAYER_FIELDS if name in value}
    shapes = [{name: raw.get(name) for name in PER_LAYER_FIELDS} | objects.get(i, {}) for i in range(len(types))]
    for kind in set(types):
        if any(shape != shapes[types.index(kind)] for shape, other in zip(shapes, types, strict=True) if other == kind):
            raise ValueError(f"config.json: per_layer_config gives layers of kind {kind} different sizes")
    for name, field in (("global_head_dim", "head_dim"), ("num_global_key_value_heads", "num_key_value_heads")):
        said = {shape[field] for shape, kind in zip(shapes, types, strict=True) if kind == FULL}
        if "per_layer_config" in raw and raw.get(name) is not None and said != {raw[name]}:
            raise ValueError(f"config.json: {name} {raw[name]!r} contradicts per_layer_config, which comes before it")
    return objects


def _layer_shape(raw: dict, kind: str, k_eq_v: bool) -> dict:
    """head_dim and num_key_value_heads of one layer kind, where the config has no per-layer object."""
    if kind == SLIDING or "per_layer_config" in raw:
        return {"head_dim": raw.get("head_dim"), "num_key_value_heads": raw.get("num_key_value_heads")}
    global_heads = raw.get("num_global_key_value_heads") if k_eq_v else None
    return {
        "head_dim": fields.integer(raw, "global_head_dim", 512, minimum=2),
        "num_key_value_heads": raw.get("num_key_value_heads") if global_heads is None else global_heads,
    }
