"""y = x W^T (+ b) on a GPU, each row with bits of its own: one float32 accumulator an element, filled along K in
ascending order, rounded once. Nothing is split along K, and a row's sum knows neither its neighbours nor its place.

Tiles may differ by the number of rows only where they add in the same order: with one block_k, by one instruction.
Tiles of 16 rows can but use mma.sync; larger ones would use wgmma on Hopper with four warps or more, whose order is
another matter. Until that has been measured (test_matmul.py does, on a GPU), two warps keep them to mma.sync. Close op.

Floor: few rows read the weight once; many are bound by tensor cores.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sglang.srt.utils.triton_runtime import runs_triton, tl, triton


@dataclass(frozen=True)
class MatmulTile:
    """One program makes `block_m` rows by `block_n` columns, `block_k` of the depth a step."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


BLOCK_K = 128
FEW_ROWS = 16
MANY_COLUMNS = 8192  # from here on wider programs fill the GPU
TILES = {  # (few rows, many columns): narrow programs where there are few of them, since a depth has only one
    (True, False): MatmulTile(16, 16, BLOCK_K, 4, 5),
    (True, True): MatmulTile(16, 64, BLOCK_K, 4, 4),
    (False, False): MatmulTile(64, 64, BLOCK_K, 2, 3),
    (False, True): MatmulTile(64, 64, BLOCK_K, 2, 3),
}
WGMMA = MatmulTile(128, 128, BLOCK_K, 8, 3)  # for many rows on Hopper, if it agrees with TILES
GROUP_M = 8  # row blocks that programs visit before they take the next columns
FLOAT32 = MatmulTile(16, 32, 32, 4, 2)  # serves tests


def matmul_tile(rows: int, columns: int, itemsize: int) -> MatmulTile:
    return FLOAT32 if itemsize == 4 else TILES[rows <= FEW_ROWS, columns >= MANY_COLUMNS]


@triton.jit(do_not_specialize=["M"])
def _matmul_kernel(
    x_ptr,  # [M, K], rows stride_x apart
    weight_ptr,  # [N, K]
    bias_ptr,  # [N], or None
    out_ptr,  # [M, N]
    M,
    N,
    K,
    stride_x,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,  # K % BLOCK_K == 0: no masks over the depth
):
    program = tl.program_id(0)
    blocks_m, blocks_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    per_group = GROUP_M * blocks_n
    first_m = program // per_group * GROUP_M
    group_m = tl.minimum(blocks_m - first_m, GROUP_M)
    m = (first_m + program % per_group % group_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = program % per_group // group_m * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Rows and columns behind the last compute the first ones again and are not stored.
    x_ptrs = x_ptr + tl.where(m < M, m, 0).to(tl.int64)[:, None] * stride_x + k[None, :]
    weight_ptrs = weight_ptr + tl.where(n < N, n, 0).to(tl.int64)[None, :] * K + k[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = (k < K - start) | EVEN_K  # always true then, which the compiler sees
        x = tl.load(x_ptrs, mask=inside[None, :], other=0.0)
        weight = tl.load(weight_ptrs, mask=inside[:, None], other=0.0)
        total = tl.dot(x, weight, total, input_precision="ieee")
        x_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K
    if bias_ptr is not None:
        total += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    out_ptrs = out_ptr + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(out_ptrs, total.to(out_ptr.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


def kernel_options(depth: int, tile: MatmulTile) -> dict:
    """What _matmul_kernel is compiled for, besides the arguments' types."""
    return dict(
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP_M=GROUP_M,
        EVEN_K=depth % tile.block_k == 0,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def matmul(x: Tensor, weight: Tensor, bias: Tensor | None = None, tile: MatmulTile | None = None) -> Tensor:
    """x [M, K], rows may be apart, weight [N, K] contiguous, bias [N] -> [M, N]; bfloat16, float16 or float32."""
    assert can_use(x, weight), f"x {x.shape} {x.dtype} {x.stride()}, weight {weight.shape} {weight.dtype}"
    (rows, depth), columns = x.shape, weight.shape[0]
    out = x.new_empty(rows, columns)
    tile = tile or matmul_tile(rows, columns, x.element_size())
    if rows:
        grid = (triton.cdiv(rows, tile.block_m) * triton.cdiv(columns, tile.block_n),)
        sizes = rows, columns, depth, x.stride(0)
        _matmul_kernel[grid](x, weight, bias, out, *sizes, **kernel_options(depth, tile))
    return out


def can_use(x: Tensor, weight: Tensor) -> bool:
    return (
        runs_triton(x)
        and x.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and x.dtype == weight.dtype
        and x.dim() == 2
        and x.stride(1) == 1
        and weight.is_contiguous()
    )
