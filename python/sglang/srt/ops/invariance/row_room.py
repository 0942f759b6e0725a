"""Room behind a tensor's last row: a product in blocks of fixed sizes (products/linear.py) needs no copy of it then.

Rows of a product do not know each other, so a block may go on over whatever lies behind the rows in memory; what comes
of that is thrown away.
"""

from torch import Tensor
from torch.nn import functional as F

from sglang.srt.ops.invariance.mode import enabled

ROOM = 256  # rows that room is rounded up to; block sizes are no further apart


def empty_rows(rows: int, *width: int, like: Tensor) -> Tensor:
    """An uninitialised [rows, *width] of the dtype and on the device of `like`; in the mode, on a GPU, with room."""
    if not (enabled() and like.is_cuda):
        return like.new_empty(rows, *width)
    return like.new_empty(-(-rows // ROOM) * ROOM, *width)[:rows]


def with_rows(x: Tensor, rows: int) -> Tensor:
    """x [T, K] as [rows, K], rows >= T: what lies behind it, not to be relied on, or zeros where it has no room."""
    if x.is_contiguous():
        end = (x.storage_offset() + rows * x.shape[1]) * x.element_size()
        if end <= x.untyped_storage().nbytes():
            return x.as_strided((rows, x.shape[1]), x.stride())
    return F.pad(x, (0, 0, 0, rows - len(x)))
