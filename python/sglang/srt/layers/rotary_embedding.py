"""Rotary position embedding, half-split pairing: dim d turns with d + D/2.

y = x * cos + rotate_half(x) * sin with rotate_half(x) = (-x2, x1). Angles are float32 (position times inverse
frequency), cos and sin are rounded to the model dtype, and the formula runs in that dtype: three roundings, as
transformers does. Exact op. Floor of applying it: x read once and written once.
"""

import math

import torch
from torch import Tensor, nn

from sglang.srt.configs.rope import RopeConfig
from sglang.srt.utils.triton_runtime import next_power_of_2, runs_triton, tl, triton


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


@triton.jit
def turned_kernel(x1, x2, c, s):
    """x1, x2 the halves of a head in the model dtype, c, s the cosines and sines of half a head in float32 -> the
    halves of the turned head, in the model dtype."""
    kind = x1.dtype
    x1, x2 = x1.to(tl.float32), x2.to(tl.float32)
    y1 = (x1 * c).to(kind).to(tl.float32) - (x2 * s).to(kind).to(tl.float32)
    y2 = (x2 * c).to(kind).to(tl.float32) + (x1 * s).to(kind).to(tl.float32)
    return y1.to(kind), y2.to(kind)


@triton.jit
def _rope_kernel(
    x, cos, sin, out, token_stride, head_stride, HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr
):
    """One head of one token a program. The second half of cos and sin repeats the first."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dims = tl.arange(0, BLOCK)
    inside = dims < HALF
    x += token * token_stride + head * head_stride + dims
    x1, x2 = tl.load(x, mask=inside), tl.load(x + HALF, mask=inside)
    c = tl.load(cos + token * 2 * HALF + dims, mask=inside).to(tl.float32)
    s = tl.load(sin + token * 2 * HALF + dims, mask=inside).to(tl.float32)
    y1, y2 = turned_kernel(x1, x2, c, s)
    out += (token * HEADS + head) * 2 * HALF + dims
    tl.store(out, y1, mask=inside)
    tl.store(out + HALF, y2, mask=inside)


def launch_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The kernel; see apply_rope_reference."""
    tokens, heads, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if tokens:
        _rope_kernel[(tokens, heads)](
            x,
            cos,
            sin,
            out,
            x.stride(0),
            x.stride(1),
            HEADS=heads,
            HALF=width // 2,
            BLOCK=next_power_of_2(width // 2),
            num_warps=1,
            enable_fp_fusion=False,
        )
    return out


def apply_rope_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, D]; cos, sin [T, D] in x's dtype, both halves alike. Returns the turned x, a new tensor."""
    x1, x2 = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(1) + torch.cat((-x2, x1), dim=-1) * sin.unsqueeze(1)


def can_use_rope(x: Tensor, cos: Tensor) -> bool:
    """Whether the kernel takes this input; x may be a view of wider rows."""
    return runs_triton(x) and x.stride(-1) == 1 and cos.is_contiguous() and cos.dtype == x.dtype


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See apply_rope_reference."""
    return launch_rope(x, cos, sin) if can_use_rope(x, cos) else apply_rope_reference(x, cos, sin)


class RotaryEmbedding(nn.Module):
    """cos and sin of one kind of layer, for positions below `max_position` (the served context, not the model's).

    Tables [max_position, head_dim / 2] in the model dtype; they are derived, so they are in no checkpoint.
    """

    def __init__(self, config: RopeConfig, head_dim: int, max_position: int):
        super().__init__()
        dtype, device = torch.get_default_dtype(), torch.get_default_device()
        # float32 until the last rounding, whatever the model dtype: bf16 frequencies are off by whole turns
        inv_freq = inverse_frequencies(config, head_dim).to(device)
        cos = torch.empty(max_position, head_dim // 2, dtype=dtype)
        sin = torch.empty_like(cos)
        for start in range(0, max_position, 8192):  # in blocks, or the float32 angles would need 3x the tables' memory
            end = min(start + 8192, max_position)
            angles = torch.arange(start, end, dtype=torch.float32)[:, None] * inv_freq
            cos[start:end] = angles.cos()
            sin[start:end] = angles.sin()
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [T] -> cos, sin [T, head_dim], once a step for all layers of the kind."""
        cos, sin = self.cos[positions], self.sin[positions]
        return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)
