"""The router's input. r = norm(h) without weight, rounded to h's dtype; r * scale, rounded; r * H^(-1/2), rounded.

Three separate roundings, transformers' order, which decide near ties: folding scale and root into one weight with one
rounding changed the experts of 4 % of tokens. The norm's sum is in a fixed order (rms_norm.rms_norm_ordered). Exact
op. Floor: h read once, r written once.
"""

import os

import torch
from torch import Tensor

from sglang.srt.ops.norms import rms_norm
from sglang.srt.ops.norms.rms_norm import MAX_WIDTH, normed_kernel, rms_norm_ordered, warps_for
from sglang.srt.utils.triton_runtime import runs_triton, tl, triton

# For measuring what the kernel is worth: the norm's own kernel and two products, three launches with the same bits.
DISABLED = os.environ.get("SGLANG_DISABLE_FUSED_ROUTER_NORM") == "1"


@triton.jit
def router_input_kernel(unit, scale, root):
    """unit [N] float32, a normed row; scale [N] in the model dtype -> the router's input in it."""
    r = unit.to(scale.dtype)
    r = (r.to(tl.float32) * scale.to(tl.float32)).to(scale.dtype)
    return (r.to(tl.float32) * root).to(scale.dtype)


@triton.jit
def _router_norm_kernel(h, scale, out, root, eps, WIDTH: tl.constexpr, LEVELS: tl.constexpr):
    """One row of h [rows, WIDTH] a program."""
    row = tl.program_id(0).to(tl.int64) * WIDTH
    dims = tl.arange(0, 1 << LEVELS)
    inside = dims < WIDTH
    x = tl.load(h + row + dims, mask=inside, other=0.0)
    unit = normed_kernel(x.to(tl.float32), eps, WIDTH, LEVELS)
    r = router_input_kernel(unit, tl.load(scale + dims, mask=inside, other=0.0), root)
    tl.store(out + row + dims, r, mask=inside)


def launch(h: Tensor, scale: Tensor, root: float, eps: float) -> Tensor:
    """The kernel over h [T, H], contiguous; returns a new tensor."""
    out = torch.empty_like(h)
    rows, width = h.shape
    if rows:
        _router_norm_kernel[(rows,)](
            h,
            scale,
            out,
            root,
            eps,
            WIDTH=width,
            LEVELS=(width - 1).bit_length(),
            num_warps=warps_for(width),
            enable_fp_fusion=False,
        )
    return out


def router_norm_reference(h: Tensor, scale: Tensor, root: float, eps: float) -> Tensor:
    """h [T, H] raw residual stream, scale [H] in h's dtype, root = H^(-1/2) -> [T, H] in h's dtype."""
    return rms_norm_ordered(h, None, eps) * scale * root


def can_use(h: Tensor, scale: Tensor) -> bool:
    """Whether the kernel takes this input; on a GPU it is the rule."""
    rows = h.is_contiguous() and h.dim() == 2 and h.shape[1] <= MAX_WIDTH
    return runs_triton(h) and not DISABLED and rows and scale.dtype == h.dtype and scale.is_contiguous()


def router_norm(h: Tensor, scale: Tensor, root: float, eps: float) -> Tensor:
    """See router_norm_reference; without this kernel the norm is rms_norm's."""
    if can_use(h, scale):
        return launch(h, scale, root, eps)
    return rms_norm.rms_norm(h, None, eps) * scale * root
