"""Gemma 4's norms between the qkv product and attention, for all heads of a token in one launch, in place.

q = norm(q, q_weight), k = norm(k, k_weight), v = norm(v) without weight, each over a head's dims (rms_norm.py). Where
the product has no v rows (k_eq_v), v is made of the raw k, taken before k's norm. Layers that read another layer's KV
have q alone. Rotation comes after (rope.py). Exact op: both launches give the bits of the reference.
Floor: the buffer read once and written once.
"""

import os

from torch import Tensor

from sglang.srt.ops.norms.rms_norm import normed_kernel, rms_norm_ordered, rms_norm_reference, warps_for
from sglang.srt.utils.triton_runtime import next_power_of_2, runs_triton, tl, triton

PER_HEAD_MAX_TOKENS = 256  # up to here a program a token and head fills the GPU better than one a token
# For measuring what the launch by head is worth: every batch takes one program a token.
PER_HEAD_DISABLED = os.environ.get("SGLANG_DISABLE_QKV_NORM_PER_HEAD") == "1"


@triton.jit
def _norm_head(
    qkv,
    v_out,
    q_weight,
    k_weight,
    head,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    V_FROM_K: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """One head of one token, whose q starts at `qkv` and whose first v goes to `v_out`."""
    WIDTH: tl.constexpr = 1 << LEVELS
    dims = tl.arange(0, WIDTH)
    at = qkv + head * WIDTH + dims
    x = tl.load(at)
    y = normed_kernel(x.to(tl.float32), eps, WIDTH, LEVELS)
    if head < NUM_HEADS:
        y = y * tl.load(q_weight + dims).to(tl.float32)
        tl.store(at, y.to(x.dtype))
    elif head < NUM_HEADS + NUM_KV_HEADS:
        if V_FROM_K:
            tl.store(v_out + (head - NUM_HEADS) * WIDTH + dims, y.to(x.dtype))
        y = y * tl.load(k_weight + dims).to(tl.float32)
        tl.store(at, y.to(x.dtype))
    else:
        tl.store(at, y.to(x.dtype))


@triton.jit
def _qkv_rms_norm_kernel(
    qkv,
    v_out,
    q_weight,
    k_weight,
    qkv_stride,
    v_stride,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    V_FROM_K: tl.constexpr,
    LEVELS: tl.constexpr,
    HEADS: tl.constexpr,
    PER_HEAD: tl.constexpr,
):
    """qkv [T, HEADS * 2**LEVELS], rows `qkv_stride` apart. Grid (T, HEADS) with PER_HEAD, else (T,)."""
    token = tl.program_id(0).to(tl.int64)
    qkv += token * qkv_stride
    v_out += token * v_stride
    if PER_HEAD:
        head = tl.program_id(1)
        _norm_head(qkv, v_out, q_weight, k_weight, head, eps, NUM_HEADS, NUM_KV_HEADS, V_FROM_K, LEVELS)
    else:
        for head in range(HEADS):
            _norm_head(qkv, v_out, q_weight, k_weight, head, eps, NUM_HEADS, NUM_KV_HEADS, V_FROM_K, LEVELS)


def launch(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor | None,
    num_heads: int,
    num_kv_heads: int,
    eps: float,
    per_head: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See qkv_rms_norm_reference; `per_head` picks one program a token and head, or one a token."""
    tokens, width = qkv.shape[0], q_weight.shape[0]
    q, k, v = _split(qkv, width, num_heads, num_kv_heads)
    v_from_k = num_kv_heads > 0 and v is None
    if v_from_k:
        v = qkv.new_empty(tokens, num_kv_heads, width)
    heads = qkv.shape[1] // width
    if tokens:
        _qkv_rms_norm_kernel[(tokens, heads) if per_head else (tokens,)](
            qkv,
            v if v_from_k else qkv,
            q_weight,
            q_weight if k_weight is None else k_weight,  # without k no program reads it
            qkv.stride(0),
            v.stride(0) if v_from_k else 0,
            eps,
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            V_FROM_K=v_from_k,
            LEVELS=(width - 1).bit_length(),
            HEADS=heads,
            PER_HEAD=per_head,
            num_warps=warps_for(width),
            enable_fp_fusion=False,
        )
    return q, k, v


def _split(qkv: Tensor, width: int, num_heads: int, num_kv_heads: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Views [T, heads, D] of the q, k and v part of each row; None for a part that is not there."""
    heads = qkv.unflatten(-1, (-1, width))
    q, k, v = heads[:, :num_heads], heads[:, num_heads : num_heads + num_kv_heads], heads[:, num_heads + num_kv_heads :]
    return q, k if k.shape[1] else None, v if v.shape[1] else None


def qkv_rms_norm_reference(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor | None,
    num_heads: int,
    num_kv_heads: int,
    eps: float,
    norm=rms_norm_ordered,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """qkv [T, heads * D] is overwritten; q_weight, k_weight [D]. heads = num_heads + 2 num_kv_heads, or num_heads +
    num_kv_heads where v is made of k; with num_kv_heads 0 (k_weight None) there is q alone.

    Returns q [T, num_heads, D], k and v [T, num_kv_heads, D] or None: views of qkv, except a v that is made of k.
    """
    q, k, v = _split(qkv, q_weight.shape[0], num_heads, num_kv_heads)
    q.copy_(norm(q, q_weight, eps))
    if k is None:
        return q, None, None
    if v is None:
        v = norm(k, None, eps)
    else:
        v.copy_(norm(v, None, eps))
    k.copy_(norm(k, k_weight, eps))
    return q, k, v


def can_use(qkv: Tensor, q_weight: Tensor) -> bool:
    """Whether the kernel takes this input: head sizes that are powers of two, rows without gaps inside."""
    width = q_weight.shape[0]
    return runs_triton(qkv) and qkv.stride(-1) == 1 and width == next_power_of_2(width) and width <= 4096


def takes_per_head(tokens: int) -> bool:
    """Few tokens: a program a token and head. Many: a program a token."""
    return tokens <= PER_HEAD_MAX_TOKENS and not PER_HEAD_DISABLED


def qkv_rms_norm(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor | None, num_heads: int, num_kv_heads: int, eps: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See qkv_rms_norm_reference; without a kernel the norms are rms_norm's, transformers' to the letter."""
    if can_use(qkv, q_weight):
        per_head = takes_per_head(qkv.shape[0])
        return launch(qkv, q_weight, k_weight, num_heads, num_kv_heads, eps, per_head)
    return qkv_rms_norm_reference(qkv, q_weight, k_weight, num_heads, num_kv_heads, eps, rms_norm_reference)
