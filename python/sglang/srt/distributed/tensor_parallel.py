"""TensorParallel: the ranks that share a model, as layers see them, and which part of a dimension each holds.

The class itself is one rank alone: its collectives return what they are given. Several ranks are process_group.py,
which is imported only then. Every rank must make the same calls in the same order.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Part of a dimension of `full` elements: the `ranges` [start, end), one after the other."""

    full: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        return sum(end - start for start, end in self.ranges)


class TensorParallel:
    """`rank` of `size`. One rank alone unless a subclass connects it to others."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of all ranks' `x`, the same bits on every rank. May overwrite `x`."""
        return x

    def all_reduce_pair(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """all_reduce of two tensors of one shape, in one message."""
        return x, y

    def all_gather(self, x: Tensor) -> Tensor:
        """x [N, V] of every rank side by side in the order of ranks, [N, size * V]."""
        return x

    def minimum(self, value: int) -> int:
        """The smallest `value` of all ranks."""
        return value

    def share(self, full: int, what: str) -> Share:
        """This rank's equal part. ValueError, naming `what`, if the ranks do not divide it."""
        if full % self.size:
            raise ValueError(f"--tp-size {self.size} does not divide {what} ({full})")
        part = full // self.size
        return Share(full, ((self.rank * part, (self.rank + 1) * part),))

    def share_of_each_half(self, half: int, what: str) -> Share:
        """This rank's part of [first; second], each of `half` elements: the same part of both, as gate and up need."""
        ((start, end),) = self.share(half, what).ranges
        return Share(2 * half, ((start, end), (half + start, half + end)))

    def share_heads(self, total: int, head_dim: int) -> Share:
        """The rows of this rank's query heads in a q_proj of `total` heads (or the columns in o_proj)."""
        ((first, end),) = self.share(total, "the attention heads").ranges
        return Share(total * head_dim, ((first * head_dim, end * head_dim),))

    def kv_heads(self, total: int) -> tuple[int, int]:
        """[first, end) of the KV heads that this rank's query heads read. With fewer heads than ranks each is held by
        as many neighbours as share it. ValueError if neither number divides the other."""
        if total % self.size and self.size % total:
            raise ValueError(f"--tp-size {self.size} neither divides the KV heads ({total}) nor is a multiple of them")
        first = self.rank * total // self.size
        return first, first + max(1, total // self.size)

    def num_kv_heads(self, total: int) -> int:
        first, end = self.kv_heads(total)
        return end - first

    def share_kv_heads(self, total: int, head_dim: int) -> Share:
        """The rows of those heads in a k_proj or v_proj of `total` heads."""
        first, end = self.kv_heads(total)
        return Share(total * head_dim, ((first * head_dim, end * head_dim),))


SINGLE = TensorParallel()
