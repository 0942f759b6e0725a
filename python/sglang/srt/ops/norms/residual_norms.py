"""The residual stream's norms: what lies between two products of a layer, in one launch each.

`add_norm`: h' = (h + norm(m, w)) * scalar, and x = norm(h', w_next) for whatever reads h' next; in a MoE layer m is
norm(m, w_m) + norm(y, w_y) first. `add_norm_moe`: h' = h + norm(a, w), and what reads it: the MLP's input, the experts'
and the router's (moe/router_norm.py), all over one mean and root of h'. Each norm, sum and product is rounded to h's
dtype, transformers' order (docs/numerics.md). Exact ops: the kernels give the bits of the norms' own kernels and of
torch's sums and products between them. Floor: every row read once, every result written once.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sglang.srt.ops.invariance.row_room import empty_rows
from sglang.srt.ops.moe import router_norm
from sglang.srt.ops.moe.router_norm import router_input_kernel, router_norm_reference
from sglang.srt.ops.norms.rms_norm import MAX_WIDTH, normed_kernel, rms_norm, rms_norm_ordered, unit_rows
from sglang.srt.utils.dependent_launch import launch_options, wait_for_previous
from sglang.srt.utils.triton_runtime import next_power_of_2, runs_triton, tl, triton

# For measuring what the kernels are worth: a launch a norm, sum and product, with the same bits.
DISABLED = os.environ.get("SGLANG_DISABLE_FUSED_RESIDUAL_NORMS") == "1"

FEW_ROWS = 256

Norm = Callable[[Tensor, Tensor, float], Tensor]  # as rms_norm


class ExpertSum(NamedTuple):
    """What makes add_norm's m the sum of two: m and y, each through a norm of its own."""

    y: Tensor  # [T, H], the experts' beside the MLP's
    m_norm: Tensor  # [H], weights
    y_norm: Tensor


class LayerEnd(NamedTuple):
    """What add_norm makes of the sum."""

    scalar: Tensor | None = None  # [1], which it is multiplied by
    next_norm: Tensor | None = None  # [H], the weight of the norm that reads the result


AS_IT_IS = LayerEnd()


class MoeReaders(NamedTuple):
    """What reads the stream between attention and a MoE layer's end."""

    mlp_norm: Tensor  # [H], weights
    expert_norm: Tensor
    router_scale: Tensor
    root: float  # H^(-1/2), of the router's norm


class MoeInputs(NamedTuple):
    """Theirs, each [T, H]."""

    mlp: Tensor
    experts: Tensor
    router: Tensor | None  # None: router_norm's to make, of h'


@triton.jit
def _row(x, at, inside):
    """A row in its dtype, zeros behind its end: they stay zeros in what follows, or the row's mean is NaN anyway."""
    return tl.load(x + at, mask=inside, other=0.0)


@triton.jit
def _norm(x, weight, eps, WIDTH: tl.constexpr, LEVELS: tl.constexpr):
    """x, weight [2**LEVELS] -> norm(x, weight), rounded to x's dtype."""
    unit = normed_kernel(x.to(tl.float32), eps, WIDTH, LEVELS)
    return (unit * weight.to(tl.float32)).to(x.dtype)


@triton.jit
def _sum(x, y):
    """x + y, rounded to their dtype."""
    return (x.to(tl.float32) + y.to(tl.float32)).to(x.dtype)


@triton.jit
def _add_norm_kernel(
    h,
    m,
    weight,
    y,
    m_weight,
    y_weight,
    scalar,
    next_weight,
    h_out,
    x_out,
    eps,
    WIDTH: tl.constexpr,
    LEVELS: tl.constexpr,
    HAS_EXPERTS: tl.constexpr,
    HAS_SCALAR: tl.constexpr,
    HAS_NEXT: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """One row of [rows, WIDTH] a program; pointers to what is not there are not read."""
    row = tl.program_id(0).to(tl.int64) * WIDTH
    dims = tl.arange(0, 1 << LEVELS)
    inside = dims < WIDTH
    w = _row(weight, dims, inside)
    if HAS_EXPERTS:
        m_w, y_w = _row(m_weight, dims, inside), _row(y_weight, dims, inside)
    if HAS_SCALAR:
        factor = tl.load(scalar).to(tl.float32)
    if HAS_NEXT:
        next_w = _row(next_weight, dims, inside)
    wait_for_previous(DEPENDENT)
    part, stream = _row(m, row + dims, inside), _row(h, row + dims, inside)
    if HAS_EXPERTS:
        other = _row(y, row + dims, inside)
        part = _sum(_norm(part, m_w, eps, WIDTH, LEVELS), _norm(other, y_w, eps, WIDTH, LEVELS))
    stream = _sum(stream, _norm(part, w, eps, WIDTH, LEVELS))
    if HAS_SCALAR:
        stream = (stream.to(tl.float32) * factor).to(stream.dtype)
    tl.store(h_out + row + dims, stream, mask=inside)
    if HAS_NEXT:
        tl.store(x_out + row + dims, _norm(stream, next_w, eps, WIDTH, LEVELS), mask=inside)


@triton.jit
def _add_norm_moe_kernel(
    h,
    a,
    weight,
    dense_weight,
    expert_weight,
    router_scale,
    h_out,
    dense_out,
    expert_out,
    router_out,
    root,
    eps,
    WIDTH: tl.constexpr,
    LEVELS: tl.constexpr,
    HAS_ROUTER: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """One row of [rows, WIDTH] a program."""
    row = tl.program_id(0).to(tl.int64) * WIDTH
    dims = tl.arange(0, 1 << LEVELS)
    inside = dims < WIDTH
    w, dense_w = _row(weight, dims, inside), _row(dense_weight, dims, inside)
    expert_w = _row(expert_weight, dims, inside)
    if HAS_ROUTER:
        scale = _row(router_scale, dims, inside)
    wait_for_previous(DEPENDENT)
    part, stream = _row(a, row + dims, inside), _row(h, row + dims, inside)
    stream = _sum(stream, _norm(part, w, eps, WIDTH, LEVELS))
    tl.store(h_out + row + dims, stream, mask=inside)
    unit = normed_kernel(stream.to(tl.float32), eps, WIDTH, LEVELS)
    dense, expert = unit * dense_w.to(tl.float32), unit * expert_w.to(tl.float32)
    tl.store(dense_out + row + dims, dense.to(stream.dtype), mask=inside)
    tl.store(expert_out + row + dims, expert.to(stream.dtype), mask=inside)
    if HAS_ROUTER:
        r = router_input_kernel(unit, scale, root)
        tl.store(router_out + row + dims, r, mask=inside)


def warps_for(rows: int, width: int) -> int:
    """Warps of a program that holds up to three rows of `width` numbers. As in rms_norm.py as few as registers allow,
    but twice as many for the few rows of a decode step, which leave the GPU idle otherwise. Measured in
    benchmark/kernels/norms.md, "Fused exact ops"; the bits do not depend on it."""
    return max(1, next_power_of_2(width) // (2048 if rows <= FEW_ROWS else 4096))


def options(rows: int, width: int) -> dict[str, int | bool]:
    """What both kernels are launched with. Products must not be fused into the sums that follow them."""
    levels = (width - 1).bit_length()
    return {"WIDTH": width, "LEVELS": levels, "num_warps": warps_for(rows, width), "enable_fp_fusion": False}


def launch_add_norm(
    h: Tensor,
    m: Tensor,
    weight: Tensor,
    eps: float,
    experts: ExpertSum | None = None,
    end: LayerEnd = AS_IT_IS,
) -> tuple[Tensor, Tensor | None]:
    """The kernel over contiguous rows; see add_norm_reference."""
    scalar, next_weight = end
    assert scalar is None or scalar.dtype == h.dtype, f"a product of {h.dtype} and {scalar.dtype} is another dtype"
    h_out = torch.empty_like(h)
    x_out = None if next_weight is None else empty_rows(*h.shape, like=h)
    y, m_weight, y_weight = experts or (None, None, None)
    if h.numel():
        _add_norm_kernel[(h.shape[0],)](
            h,
            m,
            weight,
            y,
            m_weight,
            y_weight,
            scalar,
            next_weight,
            h_out,
            x_out,
            eps,
            HAS_EXPERTS=experts is not None,
            HAS_SCALAR=scalar is not None,
            HAS_NEXT=next_weight is not None,
            **options(*h.shape),
            **launch_options(h.device),
        )
    return h_out, x_out


def launch_add_norm_moe(
    h: Tensor,
    a: Tensor,
    weight: Tensor,
    readers: MoeReaders,
    eps: float,
    with_router: bool = True,
) -> tuple[Tensor, MoeInputs]:
    """The kernel over contiguous rows; see add_norm_moe_reference."""
    h_out, expert = torch.empty_like(h), torch.empty_like(h)
    dense = empty_rows(*h.shape, like=h)
    r = empty_rows(*h.shape, like=h) if with_router else None
    if h.numel():
        _add_norm_moe_kernel[(h.shape[0],)](
            h,
            a,
            weight,
            readers.mlp_norm,
            readers.expert_norm,
            readers.router_scale if with_router else None,
            h_out,
            dense,
            expert,
            r,
            readers.root,
            eps,
            HAS_ROUTER=with_router,
            **options(*h.shape),
            **launch_options(h.device),
        )
    return h_out, MoeInputs(dense, expert, r)


def add_norm_reference(
    h: Tensor,
    m: Tensor,
    weight: Tensor,
    eps: float,
    experts: ExpertSum | None = None,
    end: LayerEnd = AS_IT_IS,
    norm: Norm = rms_norm_ordered,
) -> tuple[Tensor, Tensor | None]:
    """h, m [T, H] and weight [H] in one dtype, which is that of all parts -> h' [T, H], and x [T, H] or None without
    its norm."""
    if experts is not None:
        m = norm(m, experts.m_norm, eps) + norm(experts.y, experts.y_norm, eps)
    h = h + norm(m, weight, eps)
    if end.scalar is not None:
        h = h * end.scalar
    return h, None if end.next_norm is None else norm(h, end.next_norm, eps)


def add_norm_moe_reference(
    h: Tensor,
    a: Tensor,
    weight: Tensor,
    readers: MoeReaders,
    eps: float,
) -> tuple[Tensor, MoeInputs]:
    """h, a [T, H] and all weights [H] in one dtype -> h' [T, H], and what its readers get."""
    h, dense = add_norm_reference(h, a, weight, eps, end=LayerEnd(next_norm=readers.mlp_norm))
    router = router_norm_reference(h, readers.router_scale, readers.root, eps)
    return h, MoeInputs(dense, rms_norm_ordered(h, readers.expert_norm, eps), router)


def can_use(*rows: Tensor) -> bool:
    """Whether the kernels take these [T, H] of one shape; on a GPU it is the rule."""
    h = rows[0]
    alike = all(x.is_contiguous() and x.dtype == h.dtype and x.shape == h.shape for x in rows)
    return runs_triton(h) and not DISABLED and alike and h.dim() == 2 and h.shape[1] <= MAX_WIDTH


def add_norm(
    h: Tensor,
    m: Tensor,
    weight: Tensor,
    eps: float,
    experts: ExpertSum | None = None,
    end: LayerEnd = AS_IT_IS,
) -> tuple[Tensor, Tensor | None]:
    """See add_norm_reference; without this kernel the norms are rms_norm's. No argument is changed."""
    if can_use(h, m, *([experts.y] if experts else [])):
        return launch_add_norm(h, m, weight, eps, experts, end)
    return add_norm_reference(h, m, weight, eps, experts, end, norm=rms_norm)


def add_norm_moe(
    h: Tensor,
    a: Tensor,
    weight: Tensor,
    readers: MoeReaders,
    eps: float,
) -> tuple[Tensor, MoeInputs]:
    """See add_norm_moe_reference; without this kernel the norms are rms_norm's, and the router's is left to it; in
    torch all readers share a mean. No argument is changed."""
    if can_use(h, a):
        return launch_add_norm_moe(h, a, weight, readers, eps, router_norm.can_use(h, readers.router_scale))
    if not runs_triton(h):
        h = h + rms_norm(a, weight, eps)
        unit = unit_rows(h.float(), eps)
        dense, expert = ((unit * w).to(h.dtype) for w in (readers.mlp_norm, readers.expert_norm))
        return h, MoeInputs(dense, expert, unit.to(h.dtype) * readers.router_scale * readers.root)
    h, dense = add_norm_reference(h, a, weight, eps, end=LayerEnd(next_norm=readers.mlp_norm), norm=rms_norm)
    return h, MoeInputs(dense, rms_norm(h, readers.expert_norm, eps), None)
