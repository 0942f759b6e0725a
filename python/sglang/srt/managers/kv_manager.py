"""KVManager: who owns which KV slot. Rows, the host's slot tables, the arena of both kinds of slot, the prefix cache.

Of a running request's positions, those below `owned_from` belong to the tree (locked while it runs) and the rest to
the request. Everything here is host arithmetic; the device sees slots only through StepInput.
"""

from collections.abc import Iterator

import numpy as np

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.arena import Arena, ArenaShape, Room
from sglang.srt.mem_cache.host_tier import HostTier, Load
from sglang.srt.mem_cache.radix_cache import Inserted, Match, RadixCache
from sglang.srt.mem_cache.slot_copies import StepCopies
from sglang.srt.model_executor.step_io import TableWrite

FEW = 8  # requests that get their slots one by one
TRIM_EVERY = 128  # tokens between two looks at a request's sliding slots, as upstream does


class KVManager:
    """Slots for at most `max_rows` running requests of up to `max_len` tokens.

    `window` is W keys including the query's own; None when the model has no sliding layers.
    `decode_tokens`: slots a decode step takes for a request, more than one when it verifies a draft; keep() says
    afterwards which of them stay.
    `tier`: where prefixes go on when they leave this memory; None for nowhere.
    """

    def __init__(
        self,
        shape: ArenaShape,
        window: int | None,
        max_rows: int,
        max_len: int,
        enable_cache: bool = True,
        decode_tokens: int = 1,
        tier: HostTier | None = None,
    ):
        self.window = window
        self.max_len = max_len
        self.decode_tokens = decode_tokens
        self.arena = Arena(shape)
        self.full, self.swa = self.arena.full, self.arena.swa
        self.full_size, self.swa_size = shape.full_size, shape.swa_size
        self._full_left = self._swa_left = 0  # slots of the step being built that are still to be taken
        self.cache = RadixCache(self.full, self.swa, window, enabled=enable_cache)
        self.tier = tier
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

    def find_load(self, req: Req, match: Match) -> Load | None:
        """What host memory has of the request's prefix beyond `match`, if that is worth copying; not locked yet."""
        if self.tier is None:
            return None
        return self.tier.find(req.token_ids()[: req.match_limit], req.msg.extra_key, match.length)

    def cached_tokens(self, req: Req) -> int:
        """How long a prefix the request could start from now."""
        length = self.match(req).length
        if self.tier is None:
            return length
        return max(length, self.tier.length(req.token_ids()[: req.match_limit], req.msg.extra_key))

    def admit(self, req: Req, match: Match, load: Load | None = None) -> TableWrite | None:
        """Give the request a row and its cached prefix, which the caller has locked, as `load` is."""
        req.row = self.free_rows.pop()
        req.node = match.node
        req.computed = req.owned_from = req.swa_start = match.length
        req.swa_released = False
        req.branch = match.held if match.held > max(match.length, load.length if load else 0) else 0
        req.load = load
        if self.tier is not None:
            self.tier.read(match.full_slots, match.swa_slots)
        return self._write(req, 0, match.full_slots, match.swa_slots) if match.length else None

    def _write(self, req: Req, start: int, full_slots: np.ndarray, swa_slots: np.ndarray) -> TableWrite:
        end = start + len(full_slots)
        self.full_table[req.row, start:end] = full_slots
        self.swa_table[req.row, start:end] = swa_slots
        return TableWrite(req.row, start, full_slots, swa_slots)

    def make_room(self, full: int, swa: int) -> None:
        """Evict until so many slots of each kind can be had, those of a whole step, which are then taken in any order.
        Plans never ask for more than room() has, so a shortage is our own error."""
        short_full = full - (self.full.size - self.full.used)
        short_swa = swa - (self.swa.size - self.swa.used) if self.swa else 0
        if short_full > 0 or short_swa > 0:
            self.cache.evict(max(0, short_full), max(0, short_swa))
        while not self.arena.has(full, swa):
            assert self.cache.evict_one(), f"no {full} and {swa} slots: {self.usage()}"
        self._full_left, self._swa_left = full, swa

    def append_chunk(self, req: Req, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Slots for the request's next `count` tokens, of those that make_room() made."""
        full, swa = self._append(req, count)
        if self.tier is not None:
            self.tier.overwrite(full, swa)
            self.tier.wait_for(req.loaded_by)
        return full, swa

    def _append(self, req: Req, count: int) -> tuple[np.ndarray, np.ndarray]:
        full, swa = self._next_slots(req, count, count)
        self._write(req, req.computed, full, swa)
        req.computed += count
        return full, swa

    def _next_slots(self, req: Req, count: int, swa_count: int) -> tuple[np.ndarray, np.ndarray]:
        """`count` slots behind the request's last; the last `swa_count` of them come with sliding ones."""
        row, last = req.row, req.computed - 1
        full_last = self.full_table.item(row, last) if req.computed else 0
        swa_last = self.swa_table.item(row, last) if req.computed else 0
        full = self.full.alloc(count, full_last, self._pages_for_swa())
        self._full_left -= count
        swa = self._no_slots(count)
        if self.swa is not None:
            swa[count - swa_count :] = self.swa.alloc(swa_count, swa_last, self.full.pages_for(self._full_left))
            self._swa_left -= swa_count
        return full, swa

    def bring_back(self, req: Req, count: int) -> TableWrite:
        """Slots as append_chunk() gives them, for the next `count` tokens of the request's load, which are copied."""
        load, start, end = req.load, req.computed, req.computed + count
        full, swa = self._next_slots(req, count, load.swa_tokens(start, end))
        req.loaded_by = self.tier.load(load, start, full, swa)
        req.computed = end
        if end == load.length:
            self._end_load(req)
        return self._write(req, start, full, swa)

    def _end_load(self, req: Req) -> None:
        self.tier.end(req.load)
        req.load = None

    def take_copies(self) -> StepCopies | None:
        """What is copied beside the step being built, once it has all its slots, or now that none follows."""
        return None if self.tier is None else self.tier.take()

    def append_tokens(self, reqs: list[Req]) -> tuple[np.ndarray, np.ndarray]:
        """Slots for the next `decode_tokens` tokens of each request, request by request, of those that make_room()
        made."""
        if len(reqs) > FEW:
            full, swa = self._append_many(reqs)
        else:
            parts = [self._append(req, self.decode_tokens) for req in reqs]
            full, swa = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        if self.tier is not None:
            self.tier.overwrite(full, swa)
        return full, swa

    def _append_many(self, reqs: list[Req]) -> tuple[np.ndarray, np.ndarray]:
        count = self.decode_tokens
        full_table, swa_table = self.full_table.reshape(-1), self.swa_table.reshape(-1)
        width = self.full_table.shape[1]
        ends = np.array([req.row * width + req.computed for req in reqs])
        full = self.full.extend(full_table[ends - 1], count, self._pages_for_swa())
        self._full_left -= len(full)
        swa = self._no_slots(len(full))
        if self.swa is not None:
            swa = self.swa.extend(swa_table[ends - 1], count, self.full.pages_for(self._full_left))
            self._swa_left -= len(swa)
        if count > 1:
            ends = (ends[:, None] + np.arange(count)).ravel()
        full_table[ends] = full
        swa_table[ends] = swa
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
        done = self._insert(req, n, old_full, old_swa)
        same = np.array_equal(done.full_slots, old_full) and np.array_equal(done.swa_slots, old_swa)
        if self.tier is not None and not same:
            self.tier.read(done.full_slots, done.swa_slots)
        self.cache.lock(done.node)
        self.cache.unlock(req.node, swa_released=req.swa_released)
        req.node, req.owned_from, req.swa_start, req.swa_released = done.node, n, n, False
        return None if same else self._write(req, 0, done.full_slots, done.swa_slots)

    def _insert(self, req: Req, n: int, full: np.ndarray, swa: np.ndarray) -> Inserted:
        """The request's first `n` tokens, in these slots, go to the tree, and to the host."""
        ids, extra_key = req.token_ids()[:n], req.msg.extra_key
        done = self.cache.insert(ids, extra_key, full, swa, req.owned_from)
        if self.tier is not None:
            self.tier.store(ids, extra_key, done.full_slots, done.swa_slots)
        return done

    def release(self, req: Req) -> None:
        """The request stops running (finished, aborted or retracted): its tokens go to the tree, its row is free."""
        # A token sampled but not yet known has no id to be cached under.
        n = min(req.computed, req.num_tokens)
        if req.load is not None:
            self._end_load(req)
            if self.swa is not None:  # half a load, without a window before its last token, is of no use
                n = req.owned_from
        full = self.full_table[req.row, : req.computed].copy()
        swa = self.swa_table[req.row, : req.computed].copy()
        if n > req.owned_from:
            self._insert(req, n, full[:n], swa[:n])
        self.full.free(full[max(n, req.owned_from) :])
        if self.swa is not None:
            self.swa.free(swa[max(n, req.owned_from) :])
        self.cache.unlock(req.node, swa_released=req.swa_released)
        self.free_rows.append(req.row)
        req.row, req.node = -1, None
        req.computed = req.loaded_by = 0

    def flush(self) -> None:
        """Forget all prefixes. Nothing may run."""
        self.cache.reset()
        if self.tier is not None:
            self.tier.reset()

    def usage(self) -> dict:
        """Counts of both kinds for logs, /server_info and /metrics. Used are slots that requests hold. Capacity and
        free slots are what one kind could have, were the other to take no more; a free page is in both.
        `token_usage` is the share of pages in which requests hold slots."""
        cached_full, cached_swa = self.cache.cached()
        tier = {} if self.tier is None else self.tier.usage()
        return tier | {
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
        AssertionError with counts. `deep`: deep_checks() too."""
        self.cache.check(idle=True, deep=False)
        if self.tier is not None:
            self.tier.check(idle=True, deep=False)
        assert len(self.free_rows) == len(self.full_table) - 1, (
            f"{len(self.full_table) - 1 - len(self.free_rows)} request rows leaked"
        )
        for _ in self.deep_checks() if deep else ():
            pass

    def deep_checks(self) -> Iterator[None]:
        """Goes through the trees of both memories and all slots in parts of about a millisecond, between which nothing
        changes."""
        yield from self.cache.deep_checks()
        if self.tier is not None:
            yield from self.tier.tree.deep_checks()
