"""The router's input. r = norm(h) without weight, rounded to h's dtype; r * scale, rounded; r * H^(-1/2), rounded.

Three separate roundings, transformers' order, which decide near ties: folding scale and root into one weight with one
rounding changed the experts of 4 % of tokens. The norm's sum is in a fixed order (layernorm.rms_norm_ordered). Exact
op. Floor: h read once, r written once.
"""

from torch import Tensor

from sglang.srt.layers.layernorm import rms_norm_ordered


def router_norm_reference(h: Tensor, scale: Tensor, root: float, eps: float) -> Tensor:
    """h [T, H] raw residual stream, scale [H] in h's dtype, root = H^(-1/2) -> [T, H] in h's dtype."""
    return rms_norm_ordered(h, None, eps) * scale * root


def router_norm(h: Tensor, scale: Tensor, root: float, eps: float) -> Tensor:
    """See router_norm_reference."""
    return router_norm_reference(h, scale, root, eps)
