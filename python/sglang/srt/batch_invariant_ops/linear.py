"""y = x W^T (+ b), each row with bits of its own.

On a CPU rows go through torch in blocks of the sizes that agree (agreement.py); a block that is not full is filled up
with zeros. A GPU has a kernel (matmul.py). Outside the mode it is torch's own product. Close op.
"""

import functools
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from sglang.srt.batch_invariant_ops import matmul
from sglang.srt.batch_invariant_ops.agreement import LARGEST, agreeing_sizes, next_size, zero_sums
from sglang.srt.batch_invariant_ops.mode import enabled

MAX_COLUMNS = 8192  # a wider weight goes through in parts, which bounds what a trial costs


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K], weight [N, K], bias [N] -> [T, N], all of one dtype. ValueError if no block size agrees here."""
    if not enabled():
        return F.linear(x, weight, bias)
    if matmul.can_use(x, weight):
        return matmul.matmul(x, weight, bias)
    assert x.device.type == "cpu", f"no batch-invariant product of {x.dtype} with strides {x.stride()} on {x.device}"
    if len(weight) <= MAX_COLUMNS:
        return _in_blocks(x, weight, bias)
    biases = [None] * -(-len(weight) // MAX_COLUMNS) if bias is None else bias.split(MAX_COLUMNS)
    return torch.cat([_in_blocks(x, *part) for part in zip(weight.split(MAX_COLUMNS), biases, strict=True)], dim=1)


def _in_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = len(x)
    sizes = block_sizes(*weight.shape, weight.dtype, bias is not None, torch.get_num_threads())
    if rows in sizes:
        return F.linear(x.contiguous(), weight, bias)
    whole = rows // sizes[-1] * sizes[-1]
    rest = next_size(rows - whole, sizes) if rows > whole else 0
    blocks = F.pad(x, (0, 0, 0, whole + rest - rows)).split(sizes[-1])
    return torch.cat([F.linear(block, weight, bias) for block in blocks])[:rows]


@functools.cache
def block_sizes(columns: int, depth: int, dtype: torch.dtype, has_bias: bool, threads: int) -> tuple[int, ...]:
    """Numbers of rows that agree for a weight [columns, depth] on a CPU with that many threads."""
    x, weight = zero_sums(LARGEST, columns, depth, dtype)
    bias = torch.zeros(columns, dtype=dtype) if has_bias else None
    sizes = agreeing_sizes(lambda rows: F.linear(rows.contiguous(), weight, bias), x)
    if not sizes:
        raise ValueError(
            f"--enable-deterministic-inference: on this CPU, with {threads} threads, a row of a product with a "
            f"[{columns}, {depth}] {str(dtype)[6:]} weight depends on its place among {LARGEST} rows; "
            "try another number of threads (OMP_NUM_THREADS)"
        )
    return sizes


def prepare(parameters: Iterable[Tensor]) -> None:
    """Try all sizes that these weights need, so that a machine that can't keep the promise says so at start.

    Matrices, and stacks of them, that are on a CPU; those no product uses cost their trial only.
    """
    shapes = {(*p.shape[-2:], p.dtype) for p in parameters if p.dim() > 1 and p.device.type == "cpu"}
    for columns, depth, dtype in shapes:
        for part in {min(columns, MAX_COLUMNS), columns % MAX_COLUMNS or MAX_COLUMNS}:
            if part <= columns:
                block_sizes(part, depth, dtype, False, torch.get_num_threads())
