"""The experts' weighted sum: out[t] = sum over expert slots s of w[t, s] * y[t, s], in their order.

Products and sums are float32, each rounded by itself (no fused multiply-add), and the total is rounded once: the order
of roundings of transformers. Exact op. It reads k rows a token and writes one; memory is the floor.
"""

import torch
from torch import Tensor

from sglang.srt.utils.dependent_launch import launch_options, wait_for_previous
from sglang.srt.utils.triton_runtime import cdiv, runs_triton, tl, triton

BLOCK = 1024  # columns of one program


@triton.jit
def _sum_kernel(y_ptr, weights_ptr, out_ptr, hidden, K: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    """y [T, K, hidden], weights [T, K], out [T, hidden], all contiguous; program (t, b) makes a block of a row."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < hidden
    wait_for_previous(DEPENDENT)
    rows_ptr = y_ptr + token * K * hidden + column
    total = tl.load(rows_ptr, mask=inside).to(tl.float32) * tl.load(weights_ptr + token * K)
    for expert_slot in tl.static_range(1, K):
        y = tl.load(rows_ptr + expert_slot * hidden, mask=inside).to(tl.float32)
        total += y * tl.load(weights_ptr + token * K + expert_slot)
    tl.store(out_ptr + token * hidden + column, total.to(out_ptr.dtype.element_ty), mask=inside)


def moe_sum_reference(y: Tensor, weights: Tensor) -> Tensor:
    """y [T, k, H] in the model dtype, weights [T, k] float32 -> [T, H] in y's dtype."""
    total = y[:, 0].float() * weights[:, :1]
    for expert_slot in range(1, y.shape[1]):
        total = total + y[:, expert_slot].float() * weights[:, expert_slot, None]
    return total.to(y.dtype)


def can_use(y: Tensor, weights: Tensor) -> bool:
    return (
        runs_triton(y)
        and y.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and weights.dtype == torch.float32
        and y.is_contiguous()
        and weights.is_contiguous()
    )


def moe_sum(y: Tensor, weights: Tensor) -> Tensor:
    """See moe_sum_reference."""
    if not can_use(y, weights):
        return moe_sum_reference(y, weights)
    tokens, k, hidden = y.shape
    out = y.new_empty(tokens, hidden)
    if out.numel():
        grid = (tokens, cdiv(hidden, BLOCK))
        _sum_kernel[grid](y, weights, out, hidden, k, BLOCK, enable_fp_fusion=False, **launch_options(y.device))
    return out
