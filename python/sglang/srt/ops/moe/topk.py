"""Expert choice. probs = softmax(logits) in float32 over all experts; the k largest, renormalised to sum 1, times the
chosen experts' scales. Ties go to the lowest expert id; torch.topk promises no order among ties, and 5 % of tokens have
one at the cut with 128 experts in bfloat16. Exact op, with the same bits on every device and in every batch:

- exp is correctly rounded: it is float64's, rounded once. No float32 from -104 to 0 has an exp nearer than 1.26 units
  of float64's last place to where that rounding turns (scripts/check_exp_rounding.py), and the float64 exp of CUDA, of
  the CPU libraries and of numpy errs by at most 1;
- both sums are in the order of fixed_order.py; both divisions are IEEE's, in tensors of one dtype;
- a row with a NaN or +inf, or of -inf alone, has no softmax: its experts are 0 to k - 1 and its weights NaN.

The kernel reads a row of logits once and writes k weights and ids: launches are what it saves, memory moves little.
docs/numerics.md counts how transformers, which leaves these points to torch, differs.
"""

import os

import torch
from torch import Tensor

from sglang.srt.ops.norms.fixed_order import halving_sum, halving_sum_kernel
from sglang.srt.utils.dependent_launch import launch_options, wait_for_previous
from sglang.srt.utils.triton_runtime import runs_triton, tl, triton

MAX_EXPERTS, MAX_K = 1024, 16  # a row is held in the registers of one warp, and the search for the largest is unrolled
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# For measuring what the kernel is worth: the reference in torch's kernels, with the same bits.
DISABLED = os.environ.get("SGLANG_DISABLE_FUSED_TOPK_SOFTMAX") == "1"


@triton.jit
def _topk_softmax_kernel(
    logits,
    expert_scale,
    weights,
    ids,
    logits_stride,
    EXPERTS: tl.constexpr,
    LEVELS: tl.constexpr,
    K: tl.constexpr,
    SLOT_LEVELS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """One row of logits [T, EXPERTS], `logits_stride` apart, a program. weights, ids [T, K] contiguous."""
    row = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, 1 << LEVELS)
    inside = experts < EXPERTS
    wait_for_previous(DEPENDENT)
    x = tl.load(logits + row * logits_stride + experts, mask=inside, other=float("-inf")).to(tl.float32)
    e = tl.exp((x - tl.max(x, axis=0)).to(tl.float64)).to(tl.float32)
    probs = tl.div_rn(e, halving_sum_kernel(e, LEVELS))
    # What is left to choose from, as integers, which order like the numbers where none is negative. NaN, the whole row
    # then, ties at 0; what is no expert, or taken, is -1.
    left = tl.where(inside, tl.where(probs == probs, probs, 0.0).to(tl.int32, bitcast=True), -1)
    expert_slots = tl.arange(0, 1 << SLOT_LEVELS)
    top = tl.zeros((1 << SLOT_LEVELS,), tl.int32)
    chosen = tl.zeros((1 << SLOT_LEVELS,), tl.int32)
    for expert_slot in tl.static_range(K):
        largest = tl.max(left, axis=0)
        expert = tl.min(tl.where(left == largest, experts, EXPERTS), axis=0)
        top = tl.where(expert_slots == expert_slot, largest, top)
        chosen = tl.where(expert_slots == expert_slot, expert, chosen)
        left = tl.where(experts == expert, -1, left)
    top = top.to(tl.float32, bitcast=True)
    weight = tl.div_rn(top, halving_sum_kernel(top, SLOT_LEVELS))  # 0 / 0 = NaN in a row without a softmax
    used = expert_slots < K
    weight = weight * tl.load(expert_scale + chosen, mask=used, other=0.0).to(tl.float32)
    tl.store(weights + row * K + expert_slots, weight, mask=used)
    tl.store(ids + row * K + expert_slots, chosen.to(tl.int64), mask=used)


def launch(logits: Tensor, k: int, expert_scale: Tensor) -> tuple[Tensor, Tensor]:
    """See topk_softmax_reference; rows of logits may have any stride."""
    rows, experts = logits.shape
    weights = torch.empty(rows, k, dtype=torch.float32, device=logits.device)
    ids = torch.empty(rows, k, dtype=torch.int64, device=logits.device)
    if rows:
        _topk_softmax_kernel[(rows,)](
            logits,
            expert_scale,
            weights,
            ids,
            logits.stride(0),
            EXPERTS=experts,
            LEVELS=(experts - 1).bit_length(),
            K=k,
            SLOT_LEVELS=(k - 1).bit_length(),
            num_warps=1,
            enable_fp_fusion=False,
            **launch_options(logits.device),
        )
    return weights, ids


def topk_softmax_reference(logits: Tensor, k: int, expert_scale: Tensor) -> tuple[Tensor, Tensor]:
    """logits [T, E] in any float dtype, expert_scale [E] -> weights [T, k] float32, ids [T, k] int64, largest first.

    The scale comes after renormalising, so weights need not sum to 1 and the choice does not depend on it.
    """
    x = logits.float()
    e = (x - x.amax(dim=-1, keepdim=True)).double().exp_().float()
    probs = e / halving_sum(e)
    # A stable sort; NaN, the whole row then, counts as equal to itself.
    top, ids = torch.sort(probs, dim=-1, descending=True, stable=True)
    top, ids = top[:, :k], ids[:, :k].contiguous()
    weights = top / halving_sum(top)
    return weights * expert_scale[ids], ids


def can_use(logits: Tensor, k: int, expert_scale: Tensor) -> bool:
    """Whether the kernel takes this input; on a GPU it is the rule."""
    experts = logits.shape[1]
    sizes = 1 <= k <= min(MAX_K, experts) and experts <= MAX_EXPERTS
    dtypes = logits.dtype in DTYPES and expert_scale.dtype in DTYPES
    rows = logits.stride(1) == 1 and expert_scale.is_contiguous()
    return runs_triton(logits) and not DISABLED and sizes and dtypes and rows


def topk_softmax(logits: Tensor, k: int, expert_scale: Tensor) -> tuple[Tensor, Tensor]:
    """See topk_softmax_reference."""
    if can_use(logits, k, expert_scale):
        return launch(logits, k, expert_scale)
    return topk_softmax_reference(logits, k, expert_scale)
