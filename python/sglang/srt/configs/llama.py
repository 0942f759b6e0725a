"""The plain dense family's config (Llama, Qwen2, Qwen3): parsed from raw JSON and checked."""

from dataclasses import dataclass
from typing import ClassVar

from sglang.srt.configs import fields
from sglang.srt.configs.kv_layers import KVLayerSpec
from sglang.srt.configs.rope import RopeConfig

# transformers' own defaults for the fields that a config.json may leave out
QK_NORM = {"llama": False, "qwen2": False, "qwen3": True}
DEFAULT_THETA = 10_000.0
QWEN_KV_HEADS = 32  # Llama's is one for each attention head, as null is for all


@dataclass(frozen=True)
class LlamaConfig:
    """`sliding` tells for each layer whether it sees only `sliding_window` keys (Qwen's use_sliding_window)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    sliding: tuple[bool, ...]
    sliding_window: int
    rope: RopeConfig
    rms_norm_eps: float
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool
    max_position: int
    num_experts: ClassVar[int] = 0
    FIELDS: ClassVar[tuple[str, ...]] = (  # what from_dict reads
        "model_type", "hidden_act", "is_causal", "per_layer_config", "num_attention_heads", "hidden_size",
        "num_key_value_heads", "num_hidden_layers", "attention_bias", "vocab_size", "intermediate_size", "head_dim",
        "sliding_window", "rms_norm_eps", "mlp_bias", "tie_word_embeddings", "max_position_embeddings",
        "use_sliding_window", "layer_types", "max_window_layers", "rope_parameters", "rope_scaling", "rope_theta",
        "partial_rotary_factor", "original_max_position_embeddings",
    )  # fmt: skip

    @property
    def window(self) -> int | None:
        return self.sliding_window if any(self.sliding) else None

    @property
    def kv_layers(self) -> list[KVLayerSpec]:
        return [KVLayerSpec(i, sliding, self.num_kv_heads, self.head_dim) for i, sliding in enumerate(self.sliding)]

    @classmethod
    def from_dict(cls, raw: dict) -> "LlamaConfig":
        """From the raw config; ValueError names the field that is missing, mistyped or not supported."""
        kind = fields.one_of(raw, "model_type", None, tuple(QK_NORM))
        fields.one_of(raw, "hidden_act", "silu", ("silu",))
        fields.one_of(raw, "is_causal", True, (True,))
        fields.one_of(raw, "per_layer_config", None, (None, {}))
        heads = fields.integer(raw, "num_attention_heads")
        hidden = fields.integer(raw, "hidden_size")
        absent = kind != "llama" and "num_key_value_heads" not in raw
        kv_heads = fields.integer(raw, "num_key_value_heads", QWEN_KV_HEADS if absent else heads)
        if heads % kv_heads:
            raise ValueError(f"config.json: {heads} attention heads do not divide among {kv_heads} KV heads")
        layers = fields.layer_count(raw)
        bias = fields.boolean(raw, "attention_bias", False)
        return cls(
            vocab_size=fields.integer(raw, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=fields.integer(raw, "intermediate_size"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=fields.integer(raw, "head_dim", 128 if kind == "qwen3" else hidden // heads, minimum=2),
            sliding=_sliding(raw, kind, layers),
            sliding_window=fields.integer(raw, "sliding_window", 4096),
            rope=_rope(raw),
            rms_norm_eps=fields.number(raw, "rms_norm_eps", 1e-6),
            qkv_bias=True if kind == "qwen2" else bias,
            o_bias=False if kind == "qwen2" else bias,
            mlp_bias=kind == "llama" and fields.boolean(raw, "mlp_bias", False),
            qk_norm=QK_NORM[kind],
            tie_word_embeddings=fields.boolean(raw, "tie_word_embeddings", False),
            max_position=fields.integer(raw, "max_position_embeddings"),
        )


def _rope(raw: dict) -> RopeConfig:
    """One object for all layers. transformers lets the older name go before, and what stands outside fill it up."""
    rope = {name: raw[name] for name in ("rope_theta", "partial_rotary_factor") if raw.get(name) is not None}
    rope |= fields.mapping(raw, "rope_scaling") or fields.mapping(raw, "rope_parameters")
    if raw.get("original_max_position_embeddings") is not None:
        rope["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
    if nested := [name for name, value in rope.items() if isinstance(value, dict)]:
        raise ValueError(
            f"config.json: rope_parameters holds an object {nested[0]!r}; this family has one for all layers"
        )
    return RopeConfig.from_dict(rope, DEFAULT_THETA)


def _sliding(raw: dict, kind: str, layers: int) -> tuple[bool, ...]:
    full = ("full_attention",) * layers
    if kind == "llama" or not fields.boolean(raw, "use_sliding_window", False) or _is_null(raw, "sliding_window"):
        if "sliding_attention" in fields.layer_types(raw, layers, full):
            raise ValueError("config.json: layer_types names sliding_attention, but no sliding window is in use")
        return (False,) * layers
    first = fields.integer(raw, "max_window_layers", 28, minimum=0)
    default = tuple("sliding_attention" if i >= first else "full_attention" for i in range(layers))
    return tuple(t == "sliding_attention" for t in fields.layer_types(raw, layers, default))


def _is_null(raw: dict, name: str) -> bool:
    return name in raw and raw[name] is None
