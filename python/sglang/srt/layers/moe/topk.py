"""Expert choice. probs = softmax(logits) in float32 over all experts; the k largest, renormalised to sum 1, times the
chosen experts' scales. Ties go to the lowest expert id; torch.topk promises no order among ties, and 5 % of tokens have
one at the cut with 128 experts in bfloat16. Exact op, with the same bits on every device and in every batch:

- exp is correctly rounded: it is float64's, rounded once. No float32 from -104 to 0 has an exp nearer than 1.26 units
  of float64's last place to where that rounding turns (scripts/check_exp_rounding.py), and the float64 exp of CUDA, of
  the CPU libraries and of numpy errs by at most 1;
- both sums are in the order of fixed_order.py; both divisions are IEEE's, in tensors of one dtype;
- a row with a NaN or +inf, or of -inf alone, has no softmax: its experts are 0 to k - 1 and its weights NaN.

docs/numerics.md counts how transformers, which leaves these to torch, differs.
"""

import torch
from torch import Tensor

from sglang.srt.layers.fixed_order import halving_sum


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


def topk_softmax(logits: Tensor, k: int, expert_scale: Tensor) -> tuple[Tensor, Tensor]:
    """See topk_softmax_reference."""
    return topk_softmax_reference(logits, k, expert_scale)
