"""HostKV: the host tier's bytes, and how they are copied beside the steps. Which slots and when is said by others
(mem_cache/host_tier.py)."""

import contextlib
import logging
import time

import numpy as np
import torch
from torch import Tensor

from sglang.srt.configs.kv_layers import KVLayerSpec
from sglang.srt.layers.attention.kv_pool import KVArena
from sglang.srt.mem_cache.arena import ArenaShape
from sglang.srt.mem_cache.slot_copies import SlotCopy, StepCopies

logger = logging.getLogger(__name__)


class HostKV:
    """Slots in host memory of `shape`, beside the `card`'s of the same layers and pages. On a GPU the memory is locked,
    and copies have a stream of their own, so that neither the host nor the steps wait for them.

    Raises PinError where the memory cannot be locked.
    """

    def __init__(self, card: KVArena, kv_layers: list[KVLayerSpec], shape: ArenaShape):
        self.card, self.shape = card, shape
        on_gpu = card.buffer.is_cuda
        self.arena = KVArena(kv_layers, shape, card.buffer.dtype, "cpu", huge_pages=on_gpu)
        self._stream: torch.cuda.Stream | None = None
        self._done: dict[int, torch.cuda.Event] = {}  # of batches that may be under way
        if on_gpu:
            pin(self.arena.buffer)
            self._stream = torch.cuda.Stream(card.buffer.device)

    def run(self, copies: StepCopies) -> None:
        """Enqueue the copies behind what the current stream has so far, and let the stream wait for what it needs.
        Without a GPU they are done at once."""
        if self._stream is None:
            self._copy(copies)
            return
        if copies.out or copies.back:
            self._stream.wait_stream(torch.cuda.current_stream(self.card.buffer.device))
            with torch.cuda.stream(self._stream):
                self._copy(copies)
                self._done[copies.batch] = event = torch.cuda.Event()
                event.record()
        for batch in [batch for batch, event in self._done.items() if event.query()]:
            del self._done[batch]
        if under_way := [batch for batch in self._done if batch <= copies.needs]:
            torch.cuda.current_stream(self.card.buffer.device).wait_event(self._done[max(under_way)])

    def _copy(self, copies: StepCopies) -> None:
        for copy in copies.out:
            for card, host, slots, host_slots in self._kinds(copy):
                copy_slots(card, slots, host, host_slots)
        for copy in copies.back:
            for card, host, slots, host_slots in self._kinds(copy):
                copy_slots(host, host_slots, card, slots)

    def _kinds(self, copy: SlotCopy):
        yield self.card.rows[0], self.arena.rows[0], copy.full, copy.host_full
        yield self.card.rows[1], self.arena.rows[1], copy.swa, copy.host_swa


def copy_slots(source: Tensor, from_slots: np.ndarray, target: Tensor, to_slots: np.ndarray) -> None:
    """Rows `from_slots` [n] of `source` into rows `to_slots` [n] of `target`, one copy where neighbours stay such.
    Requests have their slots in runs, so these are large."""
    if not len(from_slots):
        return
    ends = np.flatnonzero((np.diff(from_slots) != 1) | (np.diff(to_slots) != 1)) + 1
    starts = [0, *ends.tolist()]
    for start, end in zip(starts, [*starts[1:], len(from_slots)], strict=True):
        begin, into, count = int(from_slots[start]), int(to_slots[start]), end - start
        target[into : into + count].copy_(source[begin : begin + count], non_blocking=True)


class PinError(Exception):
    """Host memory that cannot be locked, and why."""


def pin(buffer: Tensor) -> None:
    """Lock the pages of host memory, so that a GPU copies them by itself. Raises PinError."""
    start = time.monotonic()
    buffer.zero_()  # by all cores; locking takes untouched pages one by one
    cudart = torch.cuda.cudart()
    error = cudart.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0)
    if int(error):
        with contextlib.suppress(RuntimeError):  # CUDA tells of it once more at the next launch
            torch.zeros(1, device="cuda")
        raise PinError(cudart.cudaGetErrorString(error))
    logger.info("Host tier: %.1f GB locked in %.1f s", buffer.nbytes / 1e9, time.monotonic() - start)
