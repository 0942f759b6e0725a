"""Expert choice. probs = softmax(logits) in float32 over all experts; the k largest, renormalised to sum 1, times the
chosen experts' scales.

Ties go to the lowest expert id. torch.topk promises no order among ties, and 5 % of tokens have one at the cut with
128 experts in bfloat16. Exact op.
"""

import torch
from torch import Tensor

from sglang.srt.batch_invariant_ops import row_sum


def topk_softmax_reference(logits: Tensor, k: int, expert_scale: Tensor) -> tuple[Tensor, Tensor]:
    """logits [T, E] in the model dtype, expert_scale [E] -> weights [T, k] float32, ids [T, k] int64, largest first.

    The scale comes after renormalising, so weights need not sum to 1 and the choice does not depend on it.
    """
    probs = torch.softmax(logits, dim=-1, dtype=torch.float32)
    weights, ids = torch.sort(probs, dim=-1, descending=True, stable=True)
    weights, ids = weights[:, :k], ids[:, :k].contiguous()
    weights = weights / row_sum(weights)
    return weights * expert_scale[ids], ids


def topk_softmax(logits: Tensor, k: int, expert_scale: Tensor) -> tuple[Tensor, Tensor]:
    """See topk_softmax_reference."""
    return topk_softmax_reference(logits, k, expert_scale)
