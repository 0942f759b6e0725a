"""RopeConfig: which rotation a layer kind uses, as data. The tables are made by layers/rotary_embedding.py."""

from dataclasses import dataclass

from sglang.srt.configs import fields


@dataclass(frozen=True)
class RopeConfig:
    """`rope_type` is default, proportional (only the first `partial_rotary_factor` of the angles turn) or llama3
    (long wavelengths stretched by `factor`)."""

    rope_type: str
    theta: float
    partial_rotary_factor: float = 1.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192

    @classmethod
    def from_dict(cls, raw: dict, default_theta: float | None = None) -> "RopeConfig":
        """From one `rope_parameters` (or older `rope_scaling`) object. ValueError for a kind we do not compute."""
        kind = raw.get("rope_type", raw.get("type", "default"))
        if kind not in ("default", "proportional", "llama3"):
            raise ValueError(
                f"config.json: rope_type {kind!r} is not supported; supported: default, proportional, llama3"
            )
        theta = fields.number(raw, "rope_theta", default_theta)
        if kind == "proportional":
            partial = fields.number(raw, "partial_rotary_factor", 1.0)
            return cls(kind, theta, partial, fields.number(raw, "factor", 1.0))
        if fields.number(raw, "partial_rotary_factor", 1.0) != 1.0:
            raise ValueError(f"config.json: partial_rotary_factor is not supported with rope_type {kind!r}")
        if kind == "default":
            return cls(kind, theta)
        return cls(
            kind,
            theta,
            factor=fields.number(raw, "factor"),
            low_freq_factor=fields.number(raw, "low_freq_factor"),
            high_freq_factor=fields.number(raw, "high_freq_factor"),
            original_max_position=fields.integer(raw, "original_max_position_embeddings"),
        )
