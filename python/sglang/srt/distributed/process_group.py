"""ProcessGroup: TensorParallel over torch.distributed, NCCL between GPUs and gloo between CPU processes.

Two groups, because two threads use them: the model's collectives run where steps run, requests go through the
scheduler's thread. A group's calls must never interleave differently on two ranks.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from sglang.srt.distributed.tensor_parallel import TensorParallel
from sglang.srt.ops.invariance.mode import enabled

# the second is the name before torch 2.13
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

# Idle ranks wait for rank 0 as long as nobody asks anything. Dead ones are seen by their closed sockets and their
# parent, hanging ones by the watchdog, so a limit here would only end idle servers.
NO_LIMIT = timedelta(days=3650)
START_SECONDS = 600  # for all ranks to come


class RankLost(RuntimeError):
    """Another rank has ended; nothing can be computed any more."""


class ProcessGroup(TensorParallel):
    """Joins the group at `init_method` (file:// or tcp://) and returns when all `size` ranks are there.

    `device` is cuda (the current device is this rank's) or cpu. OSError when they do not
    come together. Collectives raise RankLost.
    """

    def __init__(self, rank: int, size: int, init_method: str, device: str):
        super().__init__(rank, size)
        if init_method.startswith("file://"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all on this machine, whatever its name resolves to
        start = timedelta(seconds=START_SECONDS)
        try:
            dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=size, timeout=start)
        except (RuntimeError, ValueError) as e:
            cause = str(e).partition("\n")[0]
            raise OSError(f"rank {rank} of {size} could not meet the others at {init_method}: {cause}") from e
        self._requests = dist.new_group(backend="gloo", timeout=NO_LIMIT)
        self._model = dist.new_group(backend="nccl" if device == "cuda" else "gloo", timeout=NO_LIMIT)

    def all_reduce(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        if enabled() and self.size > 2:  # a library adds in an order that follows from the message's size
            return self._sum_by_rank(x)
        with self._telling_of_loss():
            dist.all_reduce(x, group=self._model)
        return x

    def _sum_by_rank(self, x: Tensor) -> Tensor:
        first, *others = self._gather(x)
        total = first.clone()
        for part in others:
            total += part
        return total

    def all_reduce_pair(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.all_reduce(torch.stack((x, y))).unbind()
        return x, y

    def all_gather(self, x: Tensor) -> Tensor:
        return self._gather(x).transpose(0, 1).flatten(1)

    def _gather(self, x: Tensor) -> Tensor:  # [...] -> [size, ...]
        parts = x.new_empty(self.size, *x.shape)
        with self._telling_of_loss():
            _all_gather(parts.flatten(0, 1), x.contiguous(), group=self._model)
        return parts

    def minimum(self, value: int) -> int:
        smallest = torch.tensor(value)
        dist.all_reduce(smallest, dist.ReduceOp.MIN, group=self._requests)
        return int(smallest)

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """Rank 0's `data` on every rank; the others give None. Waits for rank 0 without limit."""
        size = torch.tensor(len(data) if self.rank == 0 else 0)
        with self._telling_of_loss():
            dist.broadcast(size, 0, group=self._requests)
            if not size:
                return b""
            if self.rank == 0:
                content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            else:
                content = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(content, 0, group=self._requests)
        return data if self.rank == 0 else content.numpy().tobytes()

    @contextmanager
    def _telling_of_loss(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as e:  # gloo and NCCL have no narrower one
            cause = str(e).partition("\n")[0]
            raise RankLost(f"rank {self.rank} of {self.size} has lost another rank: {cause}") from e

    def close(self) -> None:
        dist.destroy_process_group()
