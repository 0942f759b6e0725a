"""HostTier: what host memory keeps of cached prefixes, and what is copied to it and back. Host numbers only.

Host memory is a second arena with a second prefix tree. Whatever the card's tree takes over is copied there at once, as
far as it is not there yet: full slots of all tokens, sliding ones of the last window. So a prefix can leave the card
without a copy, and what leaves host memory goes by the same price as on the card. A prefix comes back as tokens
that a request need not compute: it takes slots for them, and they are copied instead of computed.

Copies travel with steps, in batches of rising numbers, and are carried out in that order beside the steps. A slot
remembers the last batches that read and write it; a step that overwrites the slot waits for both, one that reads it for
the latter. So nothing here depends on when a copy is through, and all ranks decide alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sglang.srt.mem_cache.arena import Arena, ArenaShape
from sglang.srt.mem_cache.radix_cache import Anchor, RadixCache
from sglang.srt.mem_cache.slot_copies import SlotBatches, SlotCopy, StepCopies

LEAST_PIECE = 64  # tokens that come back beside a step, however many others do


@dataclass(slots=True)
class Load:
    """A prefix of `length` tokens that host memory keeps until it is on the card, where the first `start` tokens are
    already. Of the sliding slots those from position `swa_from` on come back."""

    anchor: Anchor
    start: int
    length: int
    swa_from: int
    full_slots: np.ndarray  # int32 [length], the host's
    swa_slots: np.ndarray  # int32 [length], the host's, 0 where it has none

    def swa_tokens(self, start: int, end: int) -> int:
        """How many of the positions [start, end) take a sliding slot."""
        return max(0, end - max(start, self.swa_from))


class HostTier:
    """Prefixes in host memory of `shape`, beside a card's arena of shape `card`. `window`: W keys including the query's
    own, None without sliding layers. `token_bytes`: of a full and of a sliding slot."""

    def __init__(self, shape: ArenaShape, card: ArenaShape, window: int | None, token_bytes: tuple[int, int]):
        self.window = window
        self.token_bytes = token_bytes
        self.arena = Arena(shape)
        self.tree = RadixCache(self.arena.full, self.arena.swa, window)
        self.least_gain = max(1, (window or 0) // 4)  # for fewer tokens a window need not come back
        self.stored_tokens = self.loaded_tokens = 0
        self._read_by, self._written_by = SlotBatches(card), SlotBatches(card)
        self._next_batch = 1
        self._out: list[SlotCopy] = []
        self._back: list[SlotCopy] = []
        self._needs = 0

    # ---- to the host ----

    def store(
        self, ids: Sequence[int] | np.ndarray, extra_key: str | None, full_slots: np.ndarray, swa_slots: np.ndarray
    ) -> None:
        """Keep the prefix `ids` [n], which lies in the card's `full_slots` [n] and `swa_slots` [n] (0: it has none):
        its tokens, and the sliding slots of its last window, as far as they are not here. The cheapest prefixes here
        make room; one that does not fit at all is not kept."""
        n, full, swa = len(ids), self.arena.full, self.arena.swa
        while True:
            held_full, held_swa = self.tree.find(ids, extra_key)
            held = len(held_full)
            windows = self._lacking(n, held_swa, swa_slots)
            if not self.arena.fits(n - held, len(windows)):
                return
            if self.arena.has(n - held, len(windows)):
                break
            while not self.arena.has(n - held, len(windows)) and self.tree.evict_one():
                pass  # of this prefix too, if it must be: so look again
        if n == held and not len(windows):
            return
        host_full, host_swa = np.zeros((2, n), dtype=np.int32)
        pages_for_swa = swa.pages_for(len(windows)) if swa else 0
        host_full[held:] = full.alloc(n - held, int(held_full[-1]) if held else 0, pages_for_swa)
        if len(windows):
            before = int(windows[0]) - 1
            host_swa[windows] = swa.alloc(len(windows), int(held_swa[before]) if 0 <= before < held else 0)
        copy = SlotCopy(full_slots[held:], host_full[held:], swa_slots[windows], host_swa[windows])
        self._out.append(copy)
        self._read_by.mark(copy.full, copy.swa, self._next_batch)
        self.stored_tokens += n - held
        self.tree.insert(ids, extra_key, host_full, host_swa, 0)

    def _lacking(self, n: int, held_swa: np.ndarray, swa_slots: np.ndarray) -> np.ndarray:
        """Positions of the last window that have a sliding slot on the card and none here."""
        start = n if self.window is None else max(0, n - self.window)
        lacking = swa_slots[start:n] != 0
        here = held_swa[start:]
        lacking[: len(here)] &= here == 0
        return np.flatnonzero(lacking) + start

    # ---- back to the card ----

    def length(self, ids: np.ndarray, extra_key: str | None) -> int:
        """Tokens of the longest prefix that could come back; counts as a use of it."""
        return self.tree.match(ids, extra_key).length

    def find(self, ids: np.ndarray, extra_key: str | None, start: int) -> Load | None:
        """The longest prefix of `ids` here, if it is worth copying where the card has `start` tokens."""
        match = self.tree.match(ids, extra_key)
        if match.length - start < self.least_gain:
            return None
        swa_from = match.length if self.window is None else max(start, match.length - (self.window - 1))
        return Load(match.node, start, match.length, swa_from, match.full_slots, match.swa_slots)

    def begin(self, load: Load) -> None:
        """Keep what find() has found, with no store() in between, until end()."""
        self.tree.lock(load.anchor)

    def piece(self, load: Load, at: int, nbytes: int) -> int:
        """The tokens from position `at` on that `nbytes` hold, or a few where that is hardly any."""
        full, swa = self.token_bytes
        plain = max(0, load.swa_from - at)
        count = nbytes // full
        if count > plain:
            count = plain + (nbytes - plain * full) // (full + swa)
        return min(load.length - at, max(count, LEAST_PIECE))

    def load(self, load: Load, start: int, full_slots: np.ndarray, swa_slots: np.ndarray) -> int:
        """The tokens from position `start` on come into the card's slots [n], those of the sliding ones that are not 0.
        Returns the batch after which they are there."""
        end = start + len(full_slots)
        live = swa_slots != 0
        copy = SlotCopy(full_slots, load.full_slots[start:end], swa_slots[live], load.swa_slots[start:end][live])
        self._back.append(copy)
        self._written_by.mark(copy.full, copy.swa, self._next_batch)
        self.loaded_tokens += end - start
        return self._next_batch

    def end(self, load: Load) -> None:
        """All of it that will be copied is on its way."""
        self.tree.unlock(load.anchor)

    # ---- with the steps ----

    def read(self, full_slots: np.ndarray, swa_slots: np.ndarray) -> None:
        """The next step reads these slots of the card."""
        self.wait_for(self._written_by.last(full_slots, swa_slots))

    def overwrite(self, full_slots: np.ndarray, swa_slots: np.ndarray) -> None:
        """The next step writes these slots of the card."""
        self.read(full_slots, swa_slots)
        self.wait_for(self._read_by.last(full_slots, swa_slots))

    def wait_for(self, batch: int) -> None:
        """The next step needs what `batch` copies."""
        self._needs = max(self._needs, batch)

    def take(self) -> StepCopies | None:
        """The copies that go with the next step, and what it waits for."""
        if not (self._out or self._back or self._needs):
            return None
        copies = StepCopies(self._next_batch, self._out, self._back, self._needs)
        self._next_batch += bool(self._out or self._back)
        self._out, self._back, self._needs = [], [], 0
        return copies

    # ---- all of it ----

    def reset(self) -> None:
        """Forget everything. Raises AssertionError when a prefix is locked."""
        self.tree.reset()
        self._out = []

    def check(self, idle: bool = True, deep: bool = True) -> None:
        """RadixCache.check() of what is here."""
        self.tree.check(idle=idle, deep=deep)

    def usage(self) -> dict:
        """Counts for logs, /server_info and /metrics, in tokens."""
        full, swa = self.tree.cached()
        return {
            "host_capacity": self.arena.full.size,
            "host_cached": full,
            "host_cached_swa": swa,
            "host_stored_tokens_total": self.stored_tokens,
            "host_loaded_tokens_total": self.loaded_tokens,
        }
