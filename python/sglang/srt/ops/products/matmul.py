"""y = x W^T (+ b) on a GPU, each row with bits of its own: one float32 accumulator an element, filled along K in
ascending order, rounded once. Nothing is split along K, and a row's sum knows neither its neighbours nor its place.

Tiles may differ by the number of rows only where they add in the same order. Those of TILES multiply by mma.sync on
every GPU. On Hopper, tiles of 64 rows and four warps would take wgmma, whose order within an instruction nobody
documents; an H100's is the same, for every depth of a tile and for W x^T in place of x W^T. So HOPPER has a tile for
every number of rows, and is used where a trial at start finds that they all agree (instructions_agree). Close op.

Floor: few rows read the weight once; many are bound by tensor cores.
"""

import functools
import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from sglang.srt.ops.invariance.agreement import zero_sums
from sglang.srt.utils.dependent_launch import launch_options, wait_for_previous
from sglang.srt.utils.triton_runtime import cdiv, runs_triton, tl, triton

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MatmulTile:
    """One program makes `block_m` rows by `block_n` columns, `block_k` of the depth a step. `weight_first`: as W x^T,
    for fewer rows than a wgmma has."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    weight_first: bool = False


BLOCK_K = 128
FEW_ROWS = 16
MANY_COLUMNS = 8192  # from here on wider programs fill the GPU
TILES = {  # (few rows, many columns): narrow programs where there are few of them, since a depth has only one
    (True, False): MatmulTile(16, 16, BLOCK_K, 4, 5),
    (True, True): MatmulTile(16, 64, BLOCK_K, 4, 4),
    (False, False): MatmulTile(64, 64, BLOCK_K, 2, 3),
    (False, True): MatmulTile(64, 64, BLOCK_K, 2, 3),
}
# (up to so many rows, up to so many columns) -> tile, in this order; measured on an H200 up to 16 rows, else on an H100
# (benchmark/kernels/products.md, "Up to 16 rows, on an H200" and "17 to 64 rows, on an H100")
HOPPER = {
    (16, 512): MatmulTile(16, 16, 512, 4, 3),
    (16, 8192): MatmulTile(16, 64, 128, 4, 8, weight_first=True),
    (16, None): MatmulTile(16, 128, 128, 4, 4, weight_first=True),
    (32, 8192): MatmulTile(32, 64, 128, 4, 6, weight_first=True),
    (32, 16384): MatmulTile(32, 64, 128, 4, 3, weight_first=True),
    (32, None): MatmulTile(32, 64, 128, 4, 6, weight_first=True),
    (64, 4608): MatmulTile(64, 32, 128, 4, 6),
    (64, 8192): MatmulTile(64, 64, 128, 4, 5),
    (64, 16384): MatmulTile(64, 64, 64, 4, 5),
    (64, None): MatmulTile(64, 128, 128, 8, 4, weight_first=True),
    (128, 4608): MatmulTile(64, 64, 128, 4, 4),
    (256, 4608): MatmulTile(64, 64, 64, 4, 6),
    (128, None): MatmulTile(64, 64, 64, 4, 6),
    (256, None): MatmulTile(64, 128, 64, 4, 4),
    (None, None): MatmulTile(128, 128, 64, 4, 4),
}
OUTSIDE_THE_MODE = 64  # rows up to which HOPPER's tiles are faster than torch's product
GROUP_M = 8  # row blocks that programs visit before they take the next columns
FLOAT32 = MatmulTile(16, 32, 32, 4, 2)  # serves tests


def matmul_tile(rows: int, columns: int, itemsize: int, hopper: bool) -> MatmulTile:
    """`hopper`: whether HOPPER's tiles may be used, see instructions_agree."""
    if itemsize == 4:
        return FLOAT32
    if not hopper:
        return TILES[rows <= FEW_ROWS, columns >= MANY_COLUMNS]
    return next(
        tile
        for (most_rows, most_columns), tile in HOPPER.items()
        if (most_rows is None or rows <= most_rows) and (most_columns is None or columns <= most_columns)
    )


@functools.cache
def is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def beats_library(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel, with HOPPER's tiles, is faster than torch's product: benchmark/kernels/products.md, "17 to 64
    rows, on an H100"."""
    if not x.is_cuda:
        return False
    return 1 <= len(x) <= OUTSIDE_THE_MODE and x.dtype != torch.float32 and can_use(x, weight) and is_hopper(x.device)


@functools.cache
def instructions_agree(device: int) -> bool:
    """Whether CUDA device number `device` is a Hopper whose mma.sync and wgmma add a row in one order: tried once, with
    every tile of HOPPER, on sums that are nothing but rounding errors. Not to be called first in a graph's capture."""
    if not is_hopper(torch.device("cuda", device)):
        return False
    x, weight = zero_sums(64, 640, 2112, torch.bfloat16, f"cuda:{device}")
    want = matmul(x, weight, tile=TILES[True, False])
    differing = [tile for tile in set(HOPPER.values()) if not torch.equal(matmul(x, weight, tile=tile), want)]
    if differing:
        logger.warning("Batch-invariant products keep to small tiles here: %s add in another order", differing)
    return not differing


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
    WEIGHT_FIRST: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    program = tl.program_id(0)
    blocks_m, blocks_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    per_group = GROUP_M * blocks_n
    first_m = program // per_group * GROUP_M
    group_m = tl.minimum(blocks_m - first_m, GROUP_M)
    m = (first_m + program % per_group % group_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = program % per_group // group_m * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Columns behind the last compute the first one again and are not stored. So do rows of large blocks; in small ones,
    # where many may be missing, they are zeros: all programs would ask for one row many times over.
    is_row = (m < M) | (BLOCK_M > 64)
    x_rows = tl.where(m < M, m, 0).to(tl.int64) * stride_x
    weight_rows = tl.where(n < N, n, 0).to(tl.int64) * K
    wait_for_previous(DEPENDENT)
    if WEIGHT_FIRST:
        left, right = weight_ptr + weight_rows[:, None] + k[None, :], x_ptr + x_rows[None, :] + k[:, None]
        total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        left, right = x_ptr + x_rows[:, None] + k[None, :], weight_ptr + weight_rows[None, :] + k[:, None]
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = (k < K - start) | EVEN_K  # always true then, which the compiler sees
        if WEIGHT_FIRST:
            a = tl.load(left, mask=inside[None, :], other=0.0)
            b = tl.load(right, mask=inside[:, None] & is_row[None, :], other=0.0)
        else:
            a = tl.load(left, mask=inside[None, :] & is_row[:, None], other=0.0)
            b = tl.load(right, mask=inside[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
        left += BLOCK_K
        right += BLOCK_K
    if WEIGHT_FIRST:
        m, n = m[None, :], n[:, None]
    else:
        m, n = m[:, None], n[None, :]
    if bias_ptr is not None:
        total += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(out_ptr + m.to(tl.int64) * N + n, total.to(out_ptr.dtype.element_ty), mask=(m < M) & (n < N))


def kernel_options(depth: int, tile: MatmulTile) -> dict:
    """What _matmul_kernel is compiled for, besides the arguments' types."""
    return dict(
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP_M=GROUP_M,
        EVEN_K=depth % tile.block_k == 0,
        WEIGHT_FIRST=tile.weight_first,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def matmul(x: Tensor, weight: Tensor, bias: Tensor | None = None, tile: MatmulTile | None = None) -> Tensor:
    """x [M, K], rows may be apart, weight [N, K] contiguous, bias [N] -> [M, N]; bfloat16, float16 or float32."""
    assert can_use(x, weight), f"x {x.shape} {x.dtype} {x.stride()}, weight {weight.shape} {weight.dtype}"
    (rows, depth), columns = x.shape, weight.shape[0]
    out = x.new_empty(rows, columns)
    tile = tile or matmul_tile(rows, columns, x.element_size(), x.is_cuda and instructions_agree(x.device.index))
    if rows:
        grid = (cdiv(rows, tile.block_m) * cdiv(columns, tile.block_n),)
        sizes = rows, columns, depth, x.stride(0)
        options = kernel_options(depth, tile) | launch_options(x.device)
        _matmul_kernel[grid](x, weight, bias, out, *sizes, **options)
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
