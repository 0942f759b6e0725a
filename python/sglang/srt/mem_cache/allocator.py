"""SlotAllocator: which slots of one KV pool are free. Host numbers only; it knows no tensors, requests or prefixes."""

import numpy as np


class SlotAllocator:
    """Hands out the slots of a pool of `size` tokens, in whole pages of `page_size` consecutive slots.

    Page 0 is padding that nobody owns, so the slots are page_size .. page_size + size - 1 (1 .. size with pages of one
    token) and the page of a slot is `slot // page_size`. A size that is no multiple of the page size is rounded down.
    A slot has one owner at a time: this allocator, or whoever took it with alloc() until it comes back with free().
    """

    def __init__(self, size: int, page_size: int = 1):
        if page_size < 1 or size < page_size:
            raise ValueError(f"a pool of {size} tokens does not hold a single page of {page_size}")
        self.page_size = page_size
        self.num_pages = size // page_size
        self.size = self.num_pages * page_size
        self._offsets = np.arange(page_size, dtype=np.int32)
        self._stack = np.empty(self.num_pages, dtype=np.int32)  # free pages; the next one to give out is on top
        self._place = np.empty(self.num_pages + 1, dtype=np.int32)  # a free page's index in the stack, else -1
        self.reset()

    def reset(self) -> None:
        """Every slot is free again, whoever held it."""
        self._stack[:] = np.arange(self.num_pages, 0, -1)
        self._place[self._stack] = np.arange(self.num_pages)
        self._place[0] = 0  # padding is never given out, so freeing it is a double free
        self._num_free = self.num_pages

    def available(self) -> int:
        """Free slots."""
        return self._num_free * self.page_size

    def alloc(self, n: int) -> np.ndarray | None:
        """`n` slots, int32 [n], a multiple of the page size; None, and nothing changes, when fewer are free."""
        count, rest = divmod(n, self.page_size)
        assert n >= 0 and rest == 0, f"{n} slots are not whole pages of {self.page_size}"
        if count > self._num_free:
            return None
        self._num_free -= count
        pages = self._stack[self._num_free : self._num_free + count][::-1].copy()
        self._place[pages] = -1
        return pages if self.page_size == 1 else self._slots_of(pages)

    def free(self, slots: np.ndarray) -> None:
        """Take back `slots`, any integer dtype, in whole pages as alloc() gave them. Zeros are ignored.

        Raises AssertionError for a slot that is out of range, already free or given twice, or for part of a page.
        """
        slots = slots[slots != 0]
        if slots.size == 0:
            return
        pages = slots if self.page_size == 1 else self._pages_of(slots)
        assert pages.min() > 0 and pages.max() <= self.num_pages, (
            f"freed slots {slots.min()}..{slots.max()} of a pool with {self.size} from {self.page_size}"
        )
        assert (self._place[pages] == -1).all(), f"double free: {pages[self._place[pages] != -1][:8]} are free already"
        places = np.arange(self._num_free, self._num_free + len(pages), dtype=np.int32)
        self._place[pages] = places[::-1]
        assert (self._place[pages] == places[::-1]).all(), "double free: a slot was given twice in one call"
        self._stack[self._num_free : self._num_free + len(pages)] = pages[::-1]
        self._num_free += len(pages)

    def is_free(self, slots: np.ndarray) -> np.ndarray:
        """Bool [n]: which of `slots` are free. For checks."""
        return self._place[slots // self.page_size] != -1

    def _slots_of(self, pages: np.ndarray) -> np.ndarray:
        return (pages[:, None] * np.int32(self.page_size) + self._offsets).ravel()

    def _pages_of(self, slots: np.ndarray) -> np.ndarray:
        pages = slots[:: self.page_size] // self.page_size
        assert np.array_equal(self._slots_of(pages.astype(np.int32)), slots), (
            f"{len(slots)} slots are not whole pages of {self.page_size}"
        )
        return pages
