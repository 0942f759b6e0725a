"""The angles of rotary position embedding: frequencies, and tables of cosines and sines.

Angles are float32 (position times inverse frequency), cos and sin are rounded to the model dtype. ops/norms/rope.py
turns by them. Exact.
"""

import math

import torch
from torch import Tensor, nn

from sglang.srt.configs.rope import RopeConfig


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """[head_dim / 2] float32 on the CPU.

    proportional: int(partial_rotary_factor * head_dim / 2) angles whose exponents still divide by the whole head_dim,
    then zeros (those dims pass through). llama3: wavelengths above original / low_freq_factor divided by `factor`,
    below original / high_freq_factor kept, between them interpolated.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim {head_dim} is odd; rotary embedding turns pairs of dims")
    count = head_dim // 2
    if config.rope_type == "proportional":
        count = int(config.partial_rotary_factor * head_dim // 2)
    exponents = torch.arange(0, 2 * count, 2, dtype=torch.float32, device="cpu") / head_dim
    inv_freq = 1.0 / (config.theta**exponents)
    if config.rope_type == "proportional":
        zeros = torch.zeros(head_dim // 2 - count, dtype=torch.float32, device="cpu")
        return torch.cat((inv_freq, zeros)) / config.factor
    if config.rope_type == "llama3":
        return _llama3(inv_freq, config)
    return inv_freq


def _llama3(inv_freq: Tensor, config: RopeConfig) -> Tensor:
    low, high, original = config.low_freq_factor, config.high_freq_factor, config.original_max_position
    wavelength = 2 * math.pi / inv_freq
    stretched = torch.where(wavelength > original / low, inv_freq / config.factor, inv_freq)
    smooth = (original / wavelength - low) / (high - low)
    between = (1 - smooth) * stretched / config.factor + smooth * stretched
    is_between = (wavelength >= original / high) & (wavelength <= original / low)
    return torch.where(is_between, between, stretched)


class RotaryEmbedding(nn.Module):
    """cos and sin of one kind of layer, for positions below `max_position` (the served context, not the model's).

    Tables [max_position, head_dim / 2] in the model dtype; they are derived, so they are in no checkpoint.
    """

    def __init__(self, config: RopeConfig, head_dim: int, max_position: int):
        super().__init__()
        dtype, device = torch.get_default_dtype(), torch.get_default_device()
        cos = torch.empty(max_position, head_dim // 2, dtype=dtype)
        sin = torch.empty(max_position, head_dim // 2, dtype=dtype)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        # float32 until the last rounding, whatever the model dtype: bf16 frequencies are off by whole turns
        inv_freq = inverse_frequencies(config, head_dim)
        if device.type == "meta":  # an empty shell, for which torch would load its compiler: seconds
            return
        inv_freq = inv_freq.to(device)
        for start in range(0, max_position, 8192):  # in blocks, or the float32 angles would need 3x the tables' memory
            end = min(start + 8192, max_position)
            angles = torch.arange(start, end, dtype=torch.float32)[:, None] * inv_freq
            cos[start:end] = angles.cos()
            sin[start:end] = angles.sin()

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [T] -> cos, sin [T, head_dim], once a step for all layers of the kind."""
        cos, sin = self.cos[positions], self.sin[positions]
        return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)
