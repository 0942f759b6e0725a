"""The experts' feed-forward on the GPU: sort, grouped GEMM up, activation, grouped GEMM down, weighted sum.

y_e = down_e (gelu_tanh(gate_e x) * up_e x), out = sum over the chosen experts of w_e y_e, with the roundings of
fused_experts.py: the up product, act(gate), act(gate) * up and y_e each in the model dtype, the sum in float32. Close
op.

Few tokens read the chosen experts' weights once, and that is the floor: 1.0 and 0.5 GB a layer of 26B-A4B when all 128
are hit. Many tokens are bound by tensor cores. A row's bits depend on the row and the tiles alone, not on its company:
the depth is added up in one order. Grids are upper bounds known on the host; programs behind the last used block
leave at once, so nothing waits for the host and a CUDA graph can hold it all.
"""

import functools

import torch
from torch import Tensor

from sglang.srt.ops.invariance.mode import enabled
from sglang.srt.ops.moe.align import Alignment, align
from sglang.srt.ops.moe.config import Tiles, default_tiles, get_config, invariant_tiles
from sglang.srt.ops.moe.moe_sum import moe_sum
from sglang.srt.ops.norms.activation import CUDA_MATH, gate_with, gelu_tanh_and_mul
from sglang.srt.ops.products.matmul import instructions_agree
from sglang.srt.utils.dependent_launch import launch_options, wait_for_previous
from sglang.srt.utils.triton_runtime import cdiv, runs_triton, tl, triton

# Whether the up product applies the activation before it writes: half the traffic between the products, twice the
# accumulators. The bits are activation.py's. Off: with tiles of its own it is 0 to 3 % faster up to 4096 tokens, slower
# above, and tiles tuned without it do not fit with it (benchmark/kernels/fused_moe_triton/README.md, "The
# activation inside the up product").
FUSE_ACTIVATION = False


@triton.jit(do_not_specialize=["num_pairs", "pairs_per_row"])
def _grouped_gemm_kernel(
    a_ptr,  # [rows, K], rows stride_a apart; pair p multiplies row p // pairs_per_row
    b_ptr,  # [experts, N, K], or [experts, 2 N, K] (gate rows, then up rows) with an activation
    c_ptr,  # [num_pairs, N]
    pairs_ptr,  # Alignment
    experts_ptr,
    used_ptr,
    N,
    K,
    num_pairs,
    pairs_per_row,
    stride_a,
    ACTIVATION: tl.constexpr,  # None, or what makes act(gate) * up of the gate and up columns
    CUDA_MATH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,  # K % BLOCK_K == 0: no masks over the depth
    DEPENDENT: tl.constexpr,
):
    program = tl.program_id(0)
    wait_for_previous(DEPENDENT)
    blocks_m = tl.load(used_ptr)
    blocks_n = tl.cdiv(N, BLOCK_N)
    if program >= blocks_m * blocks_n:
        return
    per_group = GROUP_M * blocks_n
    first_m = program // per_group * GROUP_M
    group_m = tl.minimum(blocks_m - first_m, GROUP_M)
    block_m = first_m + program % per_group % group_m
    block_n = program % per_group // group_m

    pair = tl.load(pairs_ptr + block_m * BLOCK_M + tl.arange(0, BLOCK_M))
    is_pair = (pair < num_pairs)[:, None]
    expert = tl.load(experts_ptr + block_m).to(tl.int64)
    n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + (pair // pairs_per_row).to(tl.int64)[:, None] * stride_a + k[None, :]
    # Columns behind the last compute the first ones again and are not stored: cheaper than a mask in the loop.
    weight_rows = tl.where(n < N, n, 0)[None, :] * K + k[:, None]  # within an expert 32 bits are enough
    b_ptrs = b_ptr + expert * (N if ACTIVATION is None else 2 * N) * K + weight_rows
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    total_up = total
    for start in range(0, K, BLOCK_K):
        inside = (k < K - start) | EVEN_K  # always true then, which the compiler sees
        a = tl.load(a_ptrs, mask=is_pair & inside[None, :], other=0.0)
        total = tl.dot(a, tl.load(b_ptrs, mask=inside[:, None], other=0.0), total, input_precision="ieee")
        if ACTIVATION is not None:
            up = tl.load(b_ptrs + N * K, mask=inside[:, None], other=0.0)
            total_up = tl.dot(a, up, total_up, input_precision="ieee")
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K
    c = total.to(c_ptr.dtype.element_ty)
    if ACTIVATION is not None:
        c = gate_with(c, total_up.to(c_ptr.dtype.element_ty), ACTIVATION, CUDA_MATH)
    c_ptrs = c_ptr + pair.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(c_ptrs, c, mask=is_pair & (n < N)[None, :])


def grouped_gemm(
    a: Tensor,
    b: Tensor,
    plan: Alignment,
    pairs_per_row: int,
    tiles: Tiles,
    activation: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """c[p] = b[expert of p] a[p // pairs_per_row]; a [rows, K], b [E, N, K] contiguous -> [num_pairs, N].

    With an activation ("gelu_tanh") b is [E, 2 N, K], gate rows first, and c = act(gate) * up, rounded as
    activation.py does. tiles.block_m must be the plan's.
    """
    assert tiles.block_m == plan.block_m, f"tiles of {tiles.block_m} rows over blocks of {plan.block_m}"
    n, k = b.shape[1] if activation is None else b.shape[1] // 2, b.shape[2]
    c = a.new_empty(plan.num_pairs, n) if out is None else out
    sizes = n, k, plan.num_pairs, pairs_per_row, a.stride(0)
    grid = (plan.capacity * cdiv(n, tiles.block_n),)
    options = kernel_options(k, tiles, activation) | launch_options(a.device)
    _grouped_gemm_kernel[grid](a, b, c, plan.pairs, plan.experts, plan.used, *sizes, **options)
    return c


def kernel_options(k: int, tiles: Tiles, activation: str | None) -> dict:
    """What _grouped_gemm_kernel is compiled for, besides the arguments' types."""
    return dict(
        ACTIVATION=activation,
        CUDA_MATH=CUDA_MATH,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_K=tiles.block_k,
        GROUP_M=tiles.group_m,
        EVEN_K=k % tiles.block_k == 0,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )


def precompile(dtype: torch.dtype, n: int, k: int, tiles: Tiles, activation: str | None) -> None:
    """Compile what a grouped_gemm with these sizes launches, into Triton's cache. Needs a GPU, but launches nothing.

    Raises the compiler's error.
    """
    pointers = [dtype] * 3 + [torch.int32] * 3
    sizes = n, k, 0, 0, k  # the two zeros are not compiled in
    options = kernel_options(k, tiles, activation) | launch_options(torch.device("cuda"))
    _grouped_gemm_kernel.warmup(*pointers, *sizes, grid=(1,), **options)


@functools.cache
def _device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


def choose_tiles(x: Tensor, num_experts: int, intermediate: int) -> tuple[Tiles, Tiles]:
    """Tiles of the up and the down product for x [T, H]: the file's for this card, the default in the interpreter. In
    batch-invariant mode tuned files are read only where tiles of all kinds add in one order (matmul.py)."""
    if enabled() and not (x.is_cuda and instructions_agree(x.device.index)):
        return (invariant_tiles(len(x), num_experts),) * 2
    if not x.is_cuda:
        return (default_tiles(len(x), num_experts),) * 2
    name = _device_name(x.device.index)
    up, down = (
        get_config(num_experts, intermediate, name, x.dtype, len(x), side, triton.__version__) for side in (False, True)
    )
    return up, down


def can_use(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, ids: Tensor) -> bool:
    return (
        runs_triton(x)
        and x.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and x.dtype == gate_up.dtype == down.dtype
        and weights.dtype == torch.float32
        and ids.dtype == torch.int64
        and x.stride(-1) == 1
        and gate_up.is_contiguous()
        and down.is_contiguous()
    )


def fused_experts_triton(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weights: Tensor,
    ids: Tensor,
    tiles: tuple[Tiles, Tiles] | None = None,
    fuse_activation: bool = FUSE_ACTIVATION,
) -> Tensor:
    """fused_experts.fused_experts_reference is the reference; x [T, H] may have any row stride. T = 0 is allowed.

    `tiles` of the up and the down product, with one block_m; None looks them up by T.
    """
    tokens, k = ids.shape
    num_experts, hidden, intermediate = down.shape
    assert gate_up.shape == (num_experts, 2 * intermediate, hidden), f"gate_up {gate_up.shape}, down {down.shape}"
    assert x.shape == (tokens, hidden) and weights.shape == ids.shape, f"x {x.shape}, ids {ids.shape}"
    if tokens == 0:
        return x.new_empty(0, hidden)
    up_tiles, down_tiles = tiles or choose_tiles(x, num_experts, intermediate)
    plan = align(ids.contiguous(), num_experts, up_tiles.block_m)
    if fuse_activation:
        h = grouped_gemm(x, gate_up, plan, k, up_tiles, activation="gelu_tanh")
    else:
        h = gelu_tanh_and_mul(grouped_gemm(x, gate_up, plan, k, up_tiles))
    y = grouped_gemm(h, down, plan, 1, down_tiles)
    return moe_sum(y.view(tokens, k, hidden), weights.contiguous())
