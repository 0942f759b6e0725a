"""Copies of slots between a device's memory and the host's, as data, and which slots wait for which of them."""

from dataclasses import dataclass

import numpy as np

from sglang.srt.mem_cache.arena import ArenaShape


@dataclass(slots=True)
class SlotCopy:
    """K and V of n tokens in the full layers and of m in the sliding ones. All are int32 slots."""

    full: np.ndarray  # [n], of the device
    host_full: np.ndarray  # [n]
    swa: np.ndarray  # [m], of the device
    host_swa: np.ndarray  # [m]


@dataclass(slots=True)
class StepCopies:
    """The copies that go with a step, beside it: first `out`, to the host, then `back`, all of them after the steps
    before this one and the copies that came with those. The step waits for the copies numbered up to `needs`."""

    batch: int  # their number, from 1 on; the next one's if there are no copies
    out: list[SlotCopy]
    back: list[SlotCopy]
    needs: int = 0


class SlotBatches:
    """For each slot of an arena of this shape the last batch of copies that does something with it: 0 for none."""

    def __init__(self, shape: ArenaShape):
        self._per_page = shape.full_per_page, shape.swa_per_page
        pages = shape.num_pages + 1
        self._slots = [np.zeros(pages * n, dtype=np.int64) for n in self._per_page]
        self._pages = [np.zeros(pages, dtype=np.int64) for _ in self._per_page]

    def mark(self, full: np.ndarray, swa: np.ndarray, batch: int) -> None:
        """Slots [n], [m]; batches only rise."""
        for kind, slots in enumerate((full, swa)):
            if len(slots):
                self._slots[kind][slots] = batch
                self._pages[kind][slots // self._per_page[kind]] = batch

    def last(self, full: np.ndarray, swa: np.ndarray) -> int:
        """The last batch of any of these slots; zeros are no slots. A page may have been lent to the other kind since:
        then any of its slots counts."""
        last = 0
        for kind, slots in enumerate((full, swa)):
            if len(slots) and self._per_page[kind]:
                other = self._pages[1 - kind][slots // self._per_page[kind]]
                last = max(last, int(self._slots[kind][slots].max()), int(other.max()))
        return last
