"""Router fusions that look right and are not: known-bad examples, which the drift meter must see.

Each takes the place of one op of sglang.srt.ops.moe and drops roundings or an order that decide near ties. They show
why a fusion has to be exact; nothing serves with them.
"""

import torch
from torch import Tensor

from sglang.srt.ops.norms.rms_norm import rms_norm_ordered


def folded_norm(h: Tensor, scale: Tensor, root: float, eps: float) -> Tensor:
    """In place of router_norm: scale and root are one weight of a norm, which rounds once where there were three."""
    return rms_norm_ordered(h, (scale.float() * root).to(h.dtype), eps)


def topk_before_softmax(logits: Tensor, k: int, expert_scale: Tensor) -> tuple[Tensor, Tensor]:
    """In place of topk_softmax: among ties the last expert, and weights rounded to the logits' dtype twice."""
    top, places = torch.sort(logits.flip(-1), dim=-1, descending=True, stable=True)
    top, ids = top[:, :k], logits.shape[-1] - 1 - places[:, :k]
    weights = torch.softmax(top, dim=-1, dtype=torch.float32).to(logits.dtype)
    return (weights * expert_scale[ids].to(logits.dtype)).float(), ids
