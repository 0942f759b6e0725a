"""y = x W^T (+ b), each row with bits of its own.

On a CPU rows go through torch in blocks of the sizes that agree (invariance/agreement.py); a block that is not full
is filled up with zeros. A GPU has a kernel (matmul.py); many rows go through torch there too, in blocks of the sizes in
which they come out with the kernel's bits, since its library is a third faster. Outside the mode it is torch's own
product, but for the few rows of which the kernel is faster, and for 16 bits on a CPU that has no instructions for them
(widened.py). Close op.
"""

import functools
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from sglang.srt.ops.invariance.agreement import LARGEST, agreeing_sizes, next_size, zero_sums
from sglang.srt.ops.invariance.mode import enabled
from sglang.srt.ops.invariance.row_room import with_rows
from sglang.srt.ops.products import matmul, widened

MAX_COLUMNS = 8192  # on a CPU a wider weight goes through in parts, which bounds what a trial costs
FEW_ROWS = 256  # on a GPU the kernel takes these: as fast as the library, whose split sums do not agree
GPU_SIZES = (*range(320, 2049, 64), *range(2304, 8193, 256))  # see row_room.ROOM
GPU_COLUMNS = 65536  # wider weights, the head's, see few rows

Weight = tuple[int, int, torch.dtype, torch.device]  # columns, depth
_gpu_sizes: dict[Weight, tuple[int, ...]] = {}  # what warm_products() found


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K], weight [N, K], bias [N] -> [T, N], all of one dtype. ValueError if no block size agrees here."""
    if not enabled():
        if matmul.beats_library(x, weight):  # whatever order its tiles add in
            return matmul.matmul(x, weight, bias, matmul.matmul_tile(len(x), len(weight), x.itemsize, hopper=True))
        return widened.linear(x, weight, bias) if widened.can_use(x) else F.linear(x, weight, bias)
    if matmul.can_use(x, weight):
        sizes = _gpu_sizes.get((*weight.shape, weight.dtype, weight.device), ()) if bias is None else ()
        return _on_gpu(x, weight, sizes) if sizes and len(x) > FEW_ROWS else matmul.matmul(x, weight, bias)
    assert x.device.type == "cpu", f"no batch-invariant product of {x.dtype} with strides {x.stride()} on {x.device}"
    if len(weight) <= MAX_COLUMNS:
        return _on_cpu(x, weight, bias)
    biases = [None] * -(-len(weight) // MAX_COLUMNS) if bias is None else bias.split(MAX_COLUMNS)
    return torch.cat([_on_cpu(x, *part) for part in zip(weight.split(MAX_COLUMNS), biases, strict=True)], dim=1)


def float32_product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T with its float32 sums as they are; x [T, K], weight [N, K] in one dtype -> [T, N] float32. Close op."""
    if x.is_cuda and x.dtype != torch.float32 and not enabled():
        return torch.mm(x, weight.T, out_dtype=torch.float32)
    return linear(x.float(), weight.float())


def _on_cpu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    sizes = block_sizes(*weight.shape, weight.dtype, bias is not None, torch.get_num_threads())
    return _in_blocks(x, weight, bias, sizes)


def _on_gpu(x: Tensor, weight: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Of more than FEW_ROWS; as few may be left over by the largest block, and go to the kernel."""
    left = len(x) % sizes[-1]
    if not 0 < left <= FEW_ROWS:
        return _in_blocks(x, weight, None, sizes)
    return torch.cat((_in_blocks(x[:-left], weight, None, sizes), matmul.matmul(x[-left:], weight)))


def _in_blocks(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: tuple[int, ...]) -> Tensor:
    rows = len(x)
    if rows in sizes:
        return F.linear(x.contiguous(), weight, bias)
    whole = rows // sizes[-1] * sizes[-1]
    rest = next_size(rows - whole, sizes) if rows > whole else 0
    filled = with_rows(x, whole + rest) if x.is_cuda else F.pad(x, (0, 0, 0, whole + rest - rows))
    parts = [F.linear(block, weight, bias) for block in filled.split(sizes[-1])]
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[:rows]


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


def gpu_sizes(columns: int, depth: int, dtype: torch.dtype, device: torch.device) -> tuple[int, ...]:
    """Those of GPU_SIZES in which torch's product with a weight [columns, depth] has the kernel's bits in every row."""
    few, weight = zero_sums(256, columns, depth, dtype, device)
    repeats = GPU_SIZES[-1] // len(few)
    x, want = few.repeat(repeats, 1), matmul.matmul(few, weight).repeat(repeats, 1)
    return tuple(size for size in GPU_SIZES if torch.equal(F.linear(x[:size], weight), want[:size]))


@torch.inference_mode()
def warm_products(parameters: Iterable[Tensor]) -> None:
    """Try all sizes that these weights need, so that a machine that can't keep the promise says so at start.

    On a CPU matrices and stacks of them, on a GPU matrices; those no product uses cost their trial only.
    """
    parameters = list(parameters)
    for p in parameters:
        if p.is_cuda and p.dim() == 2 and p.shape[0] <= GPU_COLUMNS and p.dtype != torch.float32:
            key = (*p.shape, p.dtype, p.device)
            if key not in _gpu_sizes:
                _gpu_sizes[key] = gpu_sizes(*key)
    shapes = {(*p.shape[-2:], p.dtype) for p in parameters if p.dim() > 1 and p.device.type == "cpu"}
    for columns, depth, dtype in shapes:
        for part in {min(columns, MAX_COLUMNS), columns % MAX_COLUMNS or MAX_COLUMNS}:
            if part <= columns:
                block_sizes(part, depth, dtype, False, torch.get_num_threads())
