"""The turn of rotary embedding, half-split pairing: dim d turns with d + D/2.

y = x * cos + rotate_half(x) * sin with rotate_half(x) = (-x2, x1), in the model dtype: three roundings, as transformers
does. layers/rotary_embedding.py makes cos and sin. Exact op. Floor: x read once and written once.
"""

import torch
from torch import Tensor

from sglang.srt.utils.triton_runtime import next_power_of_2, runs_triton, tl, triton


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
