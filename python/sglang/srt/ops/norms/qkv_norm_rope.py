"""All between Gemma 4's qkv product and attention, in one launch: a token's q, k and v read once, what attention reads
written once.

q = rope(norm(q, q_weight)) goes to a new tensor, k = rope(norm(k, k_weight)) and v = norm(v) go straight into the
layer's KV buffers. Where the product has no v rows (k_eq_v), v is made of the raw k; layers that read another layer's
KV have q alone. It is qkv_rms_norm.py, rope.py and KVSlots.write one after the other, with their roundings:
each norm is rounded to the model dtype before it turns. Rotation pairs dim d with d + D/2, so a head is held as two
halves; adding the squares of one to those of the other is the first step of the norm's sum (fixed_order.py). Exact op:
both launches give the bits of the reference. Floor: the product, cos and sin read once, q, k and v written once.
"""

import os

import torch
from torch import Tensor

from sglang.srt.ops.attention.kv_slots import KVSlots
from sglang.srt.ops.norms.fixed_order import halving_sum_kernel
from sglang.srt.ops.norms.qkv_rms_norm import qkv_rms_norm, qkv_rms_norm_reference, takes_per_head
from sglang.srt.ops.norms.rms_norm import inverse_rms_kernel, rms_norm, rms_norm_ordered, unit_rows, warps_for
from sglang.srt.ops.norms.rope import apply_rope, apply_rope_reference, turned_kernel
from sglang.srt.utils.dependent_launch import launch_options, wait_for_previous
from sglang.srt.utils.triton_runtime import runs_triton, tl, triton

HEAD_SIZES = (16, 32, 64, 128, 256, 512)  # a head is held in the registers of one warp
# For measuring what the kernel is worth: norms, two rotations and two writes, five launches with the same bits.
DISABLED = os.environ.get("SGLANG_DISABLE_FUSED_QKV_ROPE") == "1"


@triton.jit
def _store_turned(y1, y2, c, s, weight, out, HALF: tl.constexpr):
    """y1, y2 [HALF] float32, a normed head without its weight; `weight` and `out` point to the first half's dims."""
    kind = out.dtype.element_ty
    y1 = (y1 * tl.load(weight).to(tl.float32)).to(kind)
    y2 = (y2 * tl.load(weight + HALF).to(tl.float32)).to(kind)
    y1, y2 = turned_kernel(y1, y2, c, s)
    tl.store(out, y1)
    tl.store(out + HALF, y2)


@triton.jit
def _head(
    qkv,
    q_weight,
    k_weight,
    c,
    s,
    q_out,
    k_out,
    v_out,
    head,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    V_FROM_K: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """One head of one token, whose first q, k and v head go to `q_out`, `k_out` and `v_out`."""
    HALF: tl.constexpr = 1 << LEVELS
    dims = tl.arange(0, HALF)
    at = qkv + head * 2 * HALF + dims
    x1, x2 = tl.load(at), tl.load(at + HALF)
    kind = x1.dtype
    x1, x2 = x1.to(tl.float32), x2.to(tl.float32)
    factor = inverse_rms_kernel(halving_sum_kernel(x1 * x1 + x2 * x2, LEVELS), eps, 2 * HALF)
    y1, y2 = x1 * factor, x2 * factor
    if head < NUM_HEADS:
        _store_turned(y1, y2, c, s, q_weight + dims, q_out + head * 2 * HALF + dims, HALF)
    else:
        if head < NUM_HEADS + NUM_KV_HEADS:
            kv_at = (head - NUM_HEADS) * 2 * HALF + dims
            _store_turned(y1, y2, c, s, k_weight + dims, k_out + kv_at, HALF)
        else:
            kv_at = (head - NUM_HEADS - NUM_KV_HEADS) * 2 * HALF + dims
        if V_FROM_K or head >= NUM_HEADS + NUM_KV_HEADS:
            tl.store(v_out + kv_at, y1.to(kind))
            tl.store(v_out + kv_at + HALF, y2.to(kind))


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _qkv_norm_rope_kernel(
    qkv,
    q_weight,
    k_weight,
    cos,
    sin,
    q_out,
    k_buffer,
    v_buffer,
    slots,
    qkv_stride,
    slot_stride,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    V_FROM_K: tl.constexpr,
    LEVELS: tl.constexpr,
    HEADS: tl.constexpr,
    PER_HEAD: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """qkv [T, HEADS * D], rows `qkv_stride` apart, D = 2 ** (LEVELS + 1). cos, sin [T, D], whose second half repeats
    the first; q_out [T, NUM_HEADS, D], buffers [slots, NUM_KV_HEADS, D], whose slots are `slot_stride` apart. Grid
    (T, HEADS) with PER_HEAD, else (T,)."""
    HALF: tl.constexpr = 1 << LEVELS
    token = tl.program_id(0).to(tl.int64)
    turn = token * 2 * HALF + tl.arange(0, HALF)
    wait_for_previous(DEPENDENT)
    c, s = tl.load(cos + turn).to(tl.float32), tl.load(sin + turn).to(tl.float32)
    qkv += token * qkv_stride
    q_out += token * (NUM_HEADS * 2 * HALF)
    if NUM_KV_HEADS > 0:
        kv_row = tl.load(slots + token) * slot_stride
        k_buffer += kv_row
        v_buffer += kv_row
    if PER_HEAD:
        _head(
            qkv, q_weight, k_weight, c, s, q_out, k_buffer, v_buffer, tl.program_id(1), eps,
            NUM_HEADS, NUM_KV_HEADS, V_FROM_K, LEVELS,
        )  # fmt: skip
    else:
        for head in range(HEADS):
            _head(
                qkv, q_weight, k_weight, c, s, q_out, k_buffer, v_buffer, head, eps,
                NUM_HEADS, NUM_KV_HEADS, V_FROM_K, LEVELS,
            )  # fmt: skip


def launch(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor | None,
    num_heads: int,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    kv: KVSlots | None,
    per_head: bool,
) -> Tensor:
    """See qkv_norm_rope_reference; `per_head` picks one program a token and head, or one a token. qkv is kept."""
    tokens, width = qkv.shape[0], q_weight.shape[0]
    heads = qkv.shape[1] // width
    kv_heads = 0 if kv is None else kv.k_buffer.shape[1]
    q = torch.empty((tokens, num_heads, width), dtype=qkv.dtype, device=qkv.device)
    if tokens:
        # without kv no program reads k's weight or slots or writes the buffers: any tensor will do
        k_buffer, v_buffer, slots = (q, q, q) if kv is None else kv
        _qkv_norm_rope_kernel[(tokens, heads) if per_head else (tokens,)](
            qkv,
            q_weight,
            q_weight if k_weight is None else k_weight,
            cos,
            sin,
            q,
            k_buffer,
            v_buffer,
            slots,
            qkv.stride(0),
            k_buffer.stride(0),
            eps,
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=kv_heads,
            V_FROM_K=kv_heads > 0 and heads == num_heads + kv_heads,
            LEVELS=(width - 1).bit_length() - 1,
            HEADS=heads,
            PER_HEAD=per_head,
            num_warps=warps_for(width),
            enable_fp_fusion=False,
            **launch_options(qkv.device),
        )
    return q


def qkv_norm_rope_reference(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor | None,
    num_heads: int,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    kv: KVSlots | None,
) -> Tensor:
    """qkv [T, heads * D] may be overwritten; q_weight, k_weight [D]; cos, sin [T, D] in qkv's dtype, both halves alike.
    heads = num_heads + 2 KV heads, or num_heads + KV heads where v is made of k; with kv None (k_weight None) there is
    q alone.

    Writes k and v of the T tokens to `kv` and returns q [T, num_heads, D], a new tensor.
    """
    kv_heads = 0 if kv is None else kv.k_buffer.shape[1]
    q, k, v = qkv_rms_norm_reference(qkv, q_weight, k_weight, num_heads, kv_heads, eps, rms_norm_ordered)
    if kv is not None:
        kv.write(apply_rope_reference(k, cos, sin), v)
    return apply_rope_reference(q, cos, sin)


def can_use(qkv: Tensor, q_weight: Tensor, cos: Tensor, sin: Tensor, kv: KVSlots | None) -> bool:
    """Whether the kernel takes this input; on a GPU it is the rule."""
    rows = runs_triton(qkv) and qkv.stride(-1) == 1 and q_weight.shape[0] in HEAD_SIZES
    turns = all(x.is_contiguous() and x.dtype == qkv.dtype for x in (cos, sin))
    pool = kv is None or (
        kv.k_buffer.dtype == kv.v_buffer.dtype == qkv.dtype
        and kv.k_buffer.shape == kv.v_buffer.shape
        and kv.k_buffer.stride() == kv.v_buffer.stride()
        and kv.k_buffer.stride()[1:] == (kv.k_buffer.shape[2], 1)
        and kv.slots.dtype == torch.int64
        and kv.slots.is_contiguous()
    )
    return rows and turns and pool and not DISABLED


def in_torch(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor | None,
    num_heads: int,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    kv: KVSlots | None,
) -> Tensor:
    """The same with the norms of rms_norm_reference, transformers' to the letter: all heads in one, q and k turned in
    one, since on a CPU a step of few tokens takes as long as starting its operations does. qkv is kept."""
    heads = qkv.unflatten(-1, (-1, q_weight.shape[0]))
    if kv is None:
        return apply_rope(rms_norm(heads, q_weight, eps), cos, sin)
    kv_heads = kv.k_buffer.shape[1]
    unit = unit_rows(heads.float(), eps)
    weight = torch.cat((q_weight.expand(num_heads, -1), k_weight.expand(kv_heads, -1)))
    turned = apply_rope((unit[:, : num_heads + kv_heads] * weight).to(qkv.dtype), cos, sin)
    kv.write(turned[:, num_heads:], unit[:, -kv_heads:].to(qkv.dtype))  # the last heads are k's where v is made of k
    return turned[:, :num_heads]


def qkv_norm_rope(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor | None,
    num_heads: int,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    kv: KVSlots | None,
) -> Tensor:
    """See qkv_norm_rope_reference; without the kernel, each op in its own launch, or in torch."""
    if can_use(qkv, q_weight, cos, sin, kv):
        return launch(qkv, q_weight, k_weight, num_heads, cos, sin, eps, kv, takes_per_head(qkv.shape[0]))
    if not runs_triton(qkv):
        return in_torch(qkv, q_weight, k_weight, num_heads, cos, sin, eps, kv)
    kv_heads = 0 if kv is None else kv.k_buffer.shape[1]
    q, k, v = qkv_rms_norm(qkv, q_weight, k_weight, num_heads, kv_heads, eps)
    if kv is not None:
        kv.write(apply_rope(k, cos, sin), v)
    return apply_rope(q, cos, sin)
