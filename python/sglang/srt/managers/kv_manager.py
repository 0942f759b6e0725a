"""KVManager: who owns which KV slot. Rows, the host's slot tables, the arena of both kinds of slot, the prefix cache.

Of a running request's positions, those below `owned_from` belong to the tree (locked while it runs) and the rest to
the request. Everything here is host arithmetic; the device sees slots only through StepInput.
"""

import numpy as np

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.arena import Arena, ArenaShape, Room
from sglang.srt.mem_cache.radix_cache import Match, RadixCache
from sglang.srt.model_executor.step_io import TableWrite

TRIM_EVERY = 128  # tokens between two looks at a request's sliding slots, as upstream does


class KVManager:
    """Slots for at most `max_rows` running requests of up to `max_len` tokens.

    `window` is W keys including the query's own; None when the model has no sliding layers.
    `decode_tokens`: slots a decode step takes for a request, more than one when it verifies a draft; keep() says
    afterwards which of them stay.
    """

    def __init__(
        self,
        shape: ArenaShape,
        window: int | None,
        max_rows: int,
        max_len: int,
        enable_cache: bool = True,
        decode_tokens: int = 1,
    ):
        self.window = window
        self.max_len = max_len
        self.decode_tokens = decode_tokens
        self.arena = Arena(shape)
        self.full, self.swa = self.arena.full, self.arena.swa
        self.full_size, self.swa_size = shape.full_size, shape.swa_size
        self._full_left = self._swa_left = 0  # slots of the step being built that are still to be taken
        self.cache = RadixCache(self.full, self.swa, window, enabled=enable_cache)
        self.free_rows = list(range(max_rows, 0, -1))  # row 0 is padding
        width = max_len + decode_tokens - 1  # a draft may go past the last token there can be
        self.full_table = np.zeros((max_rows + 1, width), dtype=np.int32)
        self.swa_table = np.zeros((max_rows + 1, width), dtype=np.int32)
        self.trim_every = min(TRIM_EVERY, window) if window else 0
        # Sliding keys before the next token that a step may read: a token sees itself, a drafter the window before it.
        self.look_back = (window if decode_tokens > 1 else window - 1) if window else 0
        # The most sliding slots one request can hold: a locked cached window, its own, and what is not trimmed yet.
        least = min(width, 2 * window + self.trim_every + decode_tokens) if window else 0
        if self.swa:
            least += shape.swa_per_page - 1  # a window may begin and end inside a page
        if not self.arena.fits(width, least):
            raise ValueError(
                f"KV memory holds {self.full_size} full or {self.swa_size} sliding tokens, one request may need "
                f"{width} and {least}"
            )

    def room(self) -> Room:
        """What can be had now, what the cache can give up included."""
        return Room(self.arena)

    def match(self, req: Req) -> Match:
        """The longest cached prefix the request may start from; not locked yet."""
        return self.cache.match(req.token_ids()[: req.match_limit], req.msg.extra_key)

    def admit(self, req: Req, match: Match) -> TableWrite | None:
        """Give the request a row and its cached prefix, which the caller has locked."""
        req.row = self.free_rows.pop()
        req.node = match.node
        req.computed = req.owned_from = req.swa_start = match.length
        req.swa_released = False
        req.branch = match.held if match.held > match.length else 0
        return self._write(req, 0, match.full_slots, match.swa_slots) if match.length else None

    def _write(self, req: Req, start: int, full_slots: np.ndarray, swa_slots: np.ndarray) -> TableWrite:
        end = start + len(full_slots)
        self.full_table[req.row, start:end] = full_slots
        self.swa_table[req.row, start:end] = swa_slots
        return TableWrite(req.row, start, full_slots, swa_slots)

    def make_room(self, count: int) -> None:
        """Evict until `count` slots of each kind can be had, those of a whole step, which are then taken in any order.
        Plans never ask for more than room() has, so a shortage is our own error."""
        short_full = count - (self.full.size - self.full.used)
        short_swa = count - (self.swa.size - self.swa.used) if self.swa else 0
        if short_full > 0 or short_swa > 0:
            self.cache.evict(max(0, short_full), max(0, short_swa))
        while not self.arena.has(count, count):
            assert self.cache.evict_one(), f"no {count} slots: {self.usage()}"
        self._full_left = self._swa_left = count

    def append_chunk(self, req: Req, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Slots for the request's next `count` tokens, of those that make_room() made."""
        last = self.full_table[req.row, req.computed - 1], self.swa_table[req.row, req.computed - 1]
        full_last, swa_last = map(int, last) if req.computed else (0, 0)
        full = self.full.alloc(count, full_last, self._pages_for_swa())
        self._full_left -= count
        swa = self._no_slots(count)
        if self.swa is not None:
            swa = self.swa.alloc(count, swa_last, self.full.pages_for(self._full_left))
            self._swa_left -= count
        self._write(req, req.computed, full, swa)
        req.computed += count
        return full, swa

    def append_tokens(self, reqs: list[Req]) -> tuple[np.ndarray, np.ndarray]:
        """Slots for the next `decode_tokens` tokens of each request, request by request, of those that make_room()
        made."""
        count = self.decode_tokens
        rows, ends = np.array([(req.row, req.computed) for req in reqs]).T
        full = self.full.extend(self.full_table[rows, ends - 1], count, self._pages_for_swa())
        self._full_left -= len(full)
        swa = self._no_slots(len(full))
        if self.swa is not None:
            swa = self.swa.extend(self.swa_table[rows, ends - 1], count, self.full.pages_for(self._full_left))
            self._swa_left -= len(swa)
        rows = np.repeat(rows, count)
        positions = np.add.outer(ends, np.arange(count)).ravel()
        self.full_table[rows, positions] = full
        self.swa_table[rows, positions] = swa
        for req in reqs:
            req.computed += count
        return full, swa

    def _pages_for_swa(self) -> int:
        """Free pages that the step's sliding slots will need."""
        return self.swa.pages_for(self._swa_left) if self.swa else 0

    @staticmethod
    def _no_slots(count: int) -> np.ndarray:
        return np.zeros(count, dtype=np.int32)

    def keep(self, req: Req, places: list[int]) -> TableWrite | None:
        """After append_tokens(): of the request's new slots those at `places` (0 up to decode_tokens - 1) hold its next
        tokens, in that order; the others are free again."""
        end = req.computed
        start = end - self.decode_tokens
        req.computed = start + len(places)
        moved = places != list(range(len(places)))
        for table, allocator in ((self.full_table, self.full), (self.swa_table, self.swa)):
            slots = table[req.row, start:end].copy()
            table[req.row, start:end] = 0
            table[req.row, start : req.computed] = slots[places]
            if allocator is not None:
                allocator.free(np.delete(slots, places))
        if not moved:
            return None
        kept = slice(start, req.computed)
        return TableWrite(req.row, start, self.full_table[req.row, kept].copy(), self.swa_table[req.row, kept].copy())

    def trim(self, reqs: list[Req]) -> None:
        """Give back sliding slots that no later token of these requests can see."""
        if self.swa is None:
            return
        for req in reqs:
            keep_from = req.computed - self.look_back  # the next token's window starts here
            if keep_from - req.swa_start >= self.trim_every:
                self._free_swa(req, req.swa_start, keep_from)
                req.swa_start = keep_from
            if not req.swa_released and keep_from >= req.owned_from:
                self.cache.release_swa(req.node)
                req.swa_released = True

    def _free_swa(self, req: Req, start: int, end: int) -> None:
        slots = self.swa_table[req.row, start:end]
        self.swa.free(slots.copy())
        slots[:] = 0

    def share_prompt(self, req: Req) -> TableWrite | None:
        """Put computed tokens into the tree, so that others can start from them; the request keeps a lock. That is the
        whole prompt once it is through, and before that what it has in common with an earlier one, as soon as it is
        computed: there others will branch off too, and the window before it is still here.

        Where the tree had them already, the request changes over to the tree's slots and its own are freed.
        """
        n = req.branch if req.is_prefilling else req.computed
        if not self.cache.enabled or not 0 < n <= req.computed:
            return None
        req.branch = 0
        old_full = self.full_table[req.row, :n].copy()
        old_swa = self.swa_table[req.row, :n].copy()
        done = self.cache.insert(req.token_ids()[:n], req.msg.extra_key, old_full, old_swa, req.owned_from)
        self.cache.lock(done.node)
        self.cache.unlock(req.node, swa_released=req.swa_released)
        req.node, req.owned_from, req.swa_start, req.swa_released = done.node, n, n, False
        if np.array_equal(done.full_slots, old_full) and np.array_equal(done.swa_slots, old_swa):
            return None
        return self._write(req, 0, done.full_slots, done.swa_slots)

    def release(self, req: Req) -> None:
        """The request stops running (finished, aborted or retracted): its tokens go to the tree, its row is free."""
        # A token sampled but not yet known has no id to be cached under.
        n = min(req.computed, req.num_tokens)
        full = self.full_table[req.row, : req.computed].copy()
        swa = self.swa_table[req.row, : req.computed].copy()
        if n > req.owned_from:
            self.cache.insert(req.token_ids()[:n], req.msg.extra_key, full[:n], swa[:n], req.owned_from)
        self.full.free(full[max(n, req.owned_from) :])
        if self.swa is not None:
            self.swa.free(swa[max(n, req.owned_from) :])
        self.cache.unlock(req.node, swa_released=req.swa_released)
        self.free_rows.append(req.row)
        req.row, req.node = -1, None
        req.computed = 0

    def flush(self) -> None:
        self.cache.reset()

    def usage(self) -> dict:
        """Counts of both kinds for logs, /server_info and /metrics. Used are slots that requests hold. Capacity and
        free slots are what one kind could have, were the other to take no more; a free page is in both.
        `token_usage` is the share of pages in which requests hold slots."""
        cached_full, cached_swa = self.cache.cached()
        return {
            "full_capacity": self.full_size,
            "full_free": self.full.available(),
            "full_cached": cached_full,
            "full_used": self.full.held,
            "swa_capacity": self.swa_size,
            "swa_free": self.swa.available() if self.swa else 0,
            "swa_cached": cached_swa,
            "swa_used": self.swa.held if self.swa else 0,
            "token_usage": self.arena.held_share,
        }

    def check_idle(self, deep: bool = True) -> None:
        """Nothing runs, so every slot is free or cached, every page has one owner and every row is free; raises
        AssertionError with counts. `deep` goes through the whole tree and all slots too, which takes milliseconds."""
        self.cache.check(idle=True, deep=deep)
        assert len(self.free_rows) == len(self.full_table) - 1, (
            f"{len(self.full_table) - 1 - len(self.free_rows)} request rows leaked"
        )
