"""Gemma 4's step between the qkv product and attention: q, k and v normed a head, q and k turned.

q = rope(norm(q, q_weight)), k = rope(norm(k, k_weight)), v = norm(v) without weight or rotation. Where the product has
no v rows (k_eq_v), v is the raw k: taken before k's norm and rotation. Exact op.
"""

from torch import Tensor

from sglang.srt.layers.layernorm import rms_norm_reference
from sglang.srt.layers.rotary_embedding import apply_rope_reference


def qkv_norm_rope_reference(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    num_kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [T, (num_heads + 1 or 2 * num_kv_heads) * D]; q_weight, k_weight [D]; cos, sin [T, D].

    Returns q [T, num_heads, D], k and v [T, num_kv_heads, D].
    """
    heads = qkv.unflatten(-1, (-1, q_weight.shape[0]))
    q, k = heads[:, :num_heads], heads[:, num_heads : num_heads + num_kv_heads]
    v = heads[:, num_heads + num_kv_heads :] if heads.shape[1] > num_heads + num_kv_heads else k
    q = apply_rope_reference(rms_norm_reference(q, q_weight, eps), cos, sin)
    v = rms_norm_reference(v, None, eps)
    k = apply_rope_reference(rms_norm_reference(k, k_weight, eps), cos, sin)
    return q, k, v


def qkv_norm_rope(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    num_kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See qkv_norm_rope_reference."""
    return qkv_norm_rope_reference(qkv, q_weight, k_weight, cos, sin, num_heads, num_kv_heads, eps)
