"""Arena: KV memory in pages, each lent to one kind of slot at a time. Host numbers only; it knows no tensors, requests
or prefixes.

A model with sliding layers has two kinds of slots: a full one holds a token's K and V of all full layers, a sliding one
those of all sliding layers. Both are cut from the same pages, so memory goes to the kind that needs it and comes back
page by page. A slot is free, *held* (a request reads or writes it) or *cached* (the prefix tree keeps it and can give
it up). A page without held slots can be had by either kind, once what is cached there has been evicted; that is what
`Room` counts, so a plan that fits in it can be carried out whatever lies where.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

FREE, HELD, CACHED = 0, 1, 2
STATES = ("free", "held", "cached")
FREE_BYTE = bytes([FREE])
SLOTS_A_PART = 1 << 17  # to check, about a millisecond


class ArenaShape(NamedTuple):
    """`num_pages` pages, of which each has room for `full_per_page` full or `swa_per_page` sliding slots (0: a model
    without sliding layers). At most `full_size` and `swa_size` slots are in use. Slots are handed out in runs of `run`
    neighbours where there is room; it divides the slots of a page."""

    num_pages: int
    full_per_page: int
    swa_per_page: int
    full_size: int
    swa_size: int
    run: int = 1

    @classmethod
    def apart(cls, full_size: int, swa_size: int) -> "ArenaShape":
        """Slots of their own for each kind: one a page, and a page for each."""
        return cls(full_size + swa_size, 1, 1 if swa_size else 0, full_size, swa_size)

    def with_pages(self, count: int) -> "ArenaShape":
        """`count` pages of this kind, all of which either kind of slot may take."""
        return self._replace(num_pages=count, full_size=count * self.full_per_page, swa_size=count * self.swa_per_page)


class Arena:
    """Free pages and the allocators of both kinds; page 0 is padding, which nobody owns."""

    def __init__(self, shape: ArenaShape):
        self.shape = shape
        self.num_pages = shape.num_pages
        self._free_pages = list(range(self.num_pages, 0, -1))  # the next one to lend comes last
        self.full = SlotAllocator(self, shape.full_per_page, shape.full_size, shape.run)
        self.swa = SlotAllocator(self, shape.swa_per_page, shape.swa_size, shape.run) if shape.swa_per_page else None
        self._kinds = [kind for kind in (self.full, self.swa) if kind is not None]

    @property
    def free_pages(self) -> int:
        return len(self._free_pages)

    @property
    def held_pages(self) -> int:
        """Pages in which requests hold slots."""
        return sum(kind.held_pages for kind in self._kinds)

    @property
    def held_share(self) -> float:
        return self.held_pages / self.num_pages

    def lend(self) -> int:
        return self._free_pages.pop()

    def take_back(self, pages: list[int]) -> None:
        self._free_pages += pages[::-1]

    def has(self, full: int, swa: int) -> bool:
        """Whether that many slots can be had without an eviction."""
        if full > self.full.size - self.full.used:
            return False
        pages = self.full.pages_for(full)
        if self.swa is not None:
            if swa > self.swa.size - self.swa.used:
                return False
            pages += self.swa.pages_for(swa)
        return pages <= len(self._free_pages)

    def fits(self, full: int, swa: int) -> bool:
        """Whether that many slots can be had at all, the cache evicted as far as needed."""
        if full > self.full.size - self.full.held:
            return False
        pages = self.full.held_pages + self.full.pages_beyond(full, self.full.beside_held)
        if self.swa is not None:
            if swa > self.swa.size - self.swa.held:
                return False
            pages += self.swa.held_pages + self.swa.pages_beyond(swa, self.swa.beside_held)
        return pages <= self.num_pages

    def check(self) -> None:
        """Raises AssertionError where a page has no owner or two. Cheap: it counts."""
        lent = [kind.lent_pages for kind in self._kinds]
        assert self.free_pages + sum(lent) == self.num_pages, (
            f"{self.free_pages} free pages and {lent} lent of {self.num_pages}"
        )

    def check_deep(self) -> None:
        """check() page by page and slot by slot."""
        for _ in self.deep_checks():
            pass

    def deep_checks(self) -> Iterator[None]:
        """check_deep() in parts of about a millisecond, between which nothing changes."""
        owners = np.zeros(self.num_pages + 1, dtype=np.int32)
        np.add.at(owners, np.array(self._free_pages, dtype=np.int64), 1)
        for kind in self._kinds:
            owners += kind.lent
            yield from kind.checks()
        owners[0] += 1  # padding
        assert (owners == 1).all(), f"pages without one owner: {np.flatnonzero(owners != 1)[:8]}"
        self.check()


class SlotAllocator:
    """The slots of one kind: those of page p are p * per_page up to (p + 1) * per_page - 1.

    At most `size` are in use at a time. Empty runs come before partly used ones, so that the tokens of a request are
    neighbours where there is room.
    """

    def __init__(self, arena: Arena, per_page: int, size: int, run: int = 1):
        if per_page % run:
            raise ValueError(f"runs of {run} slots do not divide a page of {per_page}")
        if size < 1 or size > arena.num_pages * per_page:
            raise ValueError(f"{arena.num_pages} pages of {per_page} slots do not hold {size}")
        self.arena, self.per_page, self.size, self.run = arena, per_page, size, run
        pages = arena.num_pages + 1
        self.lent = np.zeros(pages, dtype=bool)
        self._bytes = bytearray(pages * per_page)  # the same, for a look at few
        self._state = np.frombuffer(self._bytes, dtype=np.uint8)
        self._state[:per_page] = HELD  # padding is never given out
        self._order = np.empty(pages * per_page, dtype=np.int32)  # scratch of those who look for slots given twice
        self._free_in_run = np.zeros(pages * per_page // run, dtype=np.int32)
        self._held_in_page = np.zeros(pages, dtype=np.int32)
        self._cached_in_page = np.zeros(pages, dtype=np.int32)
        self._empty_runs: list[int] = []  # some may no longer be empty, or no longer ours
        self._listed = np.zeros(len(self._free_in_run), dtype=bool)
        self.used = self.held = 0  # slots
        self.lent_pages = self.held_pages = 0  # pages of this kind, and those of them with a held slot

    # ---- counts ----

    @property
    def free_in_pages(self) -> int:
        """Free slots in pages that this kind has."""
        return self.lent_pages * self.per_page - self.used

    @property
    def beside_held(self) -> int:
        """Slots that are not held in pages where others are."""
        return self.held_pages * self.per_page - self.held

    def available(self) -> int:
        """Slots that can be had without an eviction, were the other kind to take none. For logs."""
        return min(self.size - self.used, self.free_in_pages + self.arena.free_pages * self.per_page)

    def is_free(self, slots: np.ndarray) -> np.ndarray:
        """Bool [n]: which of `slots` are free. For checks."""
        return self._state[slots] == FREE

    # ---- giving out ----

    def pages_for(self, n: int) -> int:
        """Pages that must be borrowed for `n` slots."""
        return self.pages_beyond(n, self.free_in_pages)

    def pages_beyond(self, n: int, inside: int) -> int:
        """Pages for those of `n` slots that `inside` slots do not take."""
        return -(-max(0, n - inside) // self.per_page)

    def alloc(self, n: int, after: int = 0, keep_pages: int = 0) -> np.ndarray | None:
        """`n` slots, int32 [n], held from now on; those behind slot `after` first. Leaves `keep_pages` of the free
        pages to the other kind. None, and nothing changes, when fewer can be had without an eviction."""
        if n > self.size - self.used or self.pages_for(n) + keep_pages > self.arena.free_pages:
            return None
        run, behind = after // self.run, after + 1
        # Held in the padding page, in which `after` is where there is none.
        ahead = self._bytes[behind : min(behind + n, (run + 1) * self.run)]
        count = len(ahead) - len(ahead.lstrip(FREE_BYTE))
        parts = [self._take_run(behind, count)]
        n -= count
        while n > 0 and (run := self._next_run(run, keep_pages)) is not None:
            parts.append(self._take_run(run * self.run, min(n, self.run)))
            n -= self.run
        if n > 0:
            parts.append(self._take(self._remnants(n)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def extend(self, after: np.ndarray, count: int, keep_pages: int = 0) -> np.ndarray:
        """`count` more slots, [len(after) * count] int32, for each of the requests whose last slots are `after`. The
        caller has seen that so many can be had. `keep_pages`: see alloc()."""
        after = after.astype(np.intp)  # of other types numpy makes a copy at each use
        slots = after[:, None] + np.arange(1, count + 1)
        order = np.arange(len(after))
        self._order[after] = order
        behind = self._order[after] == order  # of those who begin at one cached slot only one goes on there
        behind &= after % self.run < self.run - count
        behind &= self._state.take(slots, mode="clip").sum(axis=1) == 0
        if np.count_nonzero(behind) == len(after):
            return self._take(slots.ravel())
        rest = np.flatnonzero(~behind).tolist()
        runs = []
        while count <= self.run and len(runs) < len(rest) and (run := self._pop_empty_run(keep_pages)) is not None:
            runs.append(run)
        if runs:
            slots[rest[: len(runs)]] = np.array(runs)[:, None] * self.run + np.arange(count)
            behind[rest[: len(runs)]] = True
        self._take(slots[behind].ravel())
        for index in rest[len(runs) :]:
            slots[index] = self.alloc(count, int(after[index]), keep_pages)
        return slots.ravel().astype(np.int32)

    def _next_run(self, run: int, keep_pages: int) -> int | None:
        """The empty run after `run`, or else any."""
        return run + 1 if self._is_empty(run + 1) else self._pop_empty_run(keep_pages)

    def _pop_empty_run(self, keep_pages: int) -> int | None:
        """An empty run, which is no longer listed as such; borrows a page where this kind has none."""
        while True:
            while self._empty_runs:
                run = self._empty_runs.pop()
                self._listed[run] = False
                if self._is_empty(run):
                    return run
            if self.arena.free_pages <= keep_pages:
                return None
            self._borrow()

    def _is_empty(self, run: int) -> bool:
        in_range = run < len(self._free_in_run)
        return in_range and self._free_in_run[run] == self.run and bool(self.lent[run * self.run // self.per_page])

    def _borrow(self) -> None:
        page, runs = self.arena.lend(), self.per_page // self.run
        self.lent[page] = True
        self.lent_pages += 1
        self._free_in_run[page * runs : (page + 1) * runs] = self.run
        self._list_runs(np.arange((page + 1) * runs - 1, page * runs - 1, -1))

    def _list_runs(self, runs: np.ndarray) -> None:
        new = runs[~self._listed[runs]]
        self._listed[new] = True
        self._empty_runs += new.tolist()

    def _remnants(self, n: int) -> np.ndarray:
        """`n` free slots of runs that are partly used, those with the most first."""
        runs = np.flatnonzero(self._free_in_run)
        runs = runs[np.argsort(-self._free_in_run[runs], kind="stable")]
        runs = runs[: int(np.searchsorted(np.cumsum(self._free_in_run[runs]), n)) + 1]
        slots = (runs[:, None] * self.run + np.arange(self.run)).ravel().astype(np.int32)
        return slots[self._state[slots] == FREE][:n]

    def _take_run(self, first: int, count: int) -> np.ndarray:
        """`count` free slots from `first` on, all in one run."""
        if count:
            run, page = first // self.run, first // self.per_page
            self._state[first : first + count] = HELD
            self._free_in_run[run] -= count
            held = self._held_in_page.item(page)
            self.held_pages += not held
            self._held_in_page[page] = held + count
            self.used += count
            self.held += count
        return np.arange(first, first + count, dtype=np.int32)

    def _take(self, slots: np.ndarray) -> np.ndarray:
        """Free slots, any, as int32."""
        self._state[slots] = HELD
        self.used += len(slots)
        _add(self._free_in_run, slots // self.run, -1)
        self._count_held(slots // self.per_page, 1)
        return slots.astype(np.int32)

    # ---- changing hands ----

    def free(self, slots: np.ndarray) -> None:
        """Held slots are free again. Zeros are ignored.

        Raises AssertionError for a slot that is out of range, not held, or given twice.
        """
        slots = slots[slots != 0]
        self._change(slots, HELD, FREE)
        pages = slots // self.per_page
        self._count_held(pages, -1)
        self._give_back(slots, pages)

    def cache(self, slots: np.ndarray) -> None:
        """Held slots are the tree's, which can give them up. Errors as in free()."""
        self._change(slots, HELD, CACHED)
        pages = slots // self.per_page
        self._count_held(pages, -1)
        _add(self._cached_in_page, pages, 1)

    def hold(self, slots: np.ndarray) -> None:
        """Cached slots must stay, since a request reads them. Errors as in free()."""
        self._change(slots, CACHED, HELD)
        pages = slots // self.per_page
        _add(self._cached_in_page, pages, -1)
        self._count_held(pages, 1)

    def evict(self, slots: np.ndarray) -> None:
        """Cached slots are free again. Errors as in free()."""
        self._change(slots, CACHED, FREE)
        pages = slots // self.per_page
        _add(self._cached_in_page, pages, -1)
        self._give_back(slots, pages)

    def _change(self, slots: np.ndarray, before: int, after: int) -> None:
        if not len(slots):
            return
        low, high = slots.min(), slots.max()
        assert self.per_page <= low and high < len(self._state), (
            f"slots {low}..{high} of {self.per_page}..{len(self._state) - 1}"
        )
        wrong = slots[self._state[slots] != before]
        assert not len(wrong), f"slots {wrong[:8]} are {STATES[self._state[wrong[0]]]}, not {STATES[before]}"
        places = np.arange(len(slots), dtype=np.int32)
        self._order[slots] = places
        assert (self._order[slots] == places).all(), "a slot was given twice in one call"
        self._state[slots] = after

    def _give_back(self, slots: np.ndarray, pages: np.ndarray) -> None:
        if not len(slots):
            return
        self.used -= len(slots)
        runs = slots // self.run
        _add(self._free_in_run, runs, 1)
        empty = runs[self._free_in_run[runs] == self.run]
        if not len(empty):
            return
        self._list_runs(_distinct(empty)[::-1])
        unused = pages[(self._held_in_page[pages] == 0) & (self._cached_in_page[pages] == 0)]
        if len(unused):
            unused = _distinct(unused)
            self.lent[unused] = False
            self.lent_pages -= len(unused)
            per_page = self.per_page // self.run
            self._free_in_run[(unused[:, None] * per_page + np.arange(per_page)).ravel()] = 0
            self.arena.take_back(unused.tolist())

    def _count_held(self, pages: np.ndarray, sign: int) -> None:
        if not len(pages):
            return
        self.held += sign * len(pages)
        if sign < 0:
            _add(self._held_in_page, pages, sign)
        turned = pages[self._held_in_page[pages] == 0]
        if sign > 0:
            _add(self._held_in_page, pages, sign)
        if len(turned):
            self.held_pages += sign * len(_distinct(turned))

    def checks(self) -> Iterator[None]:
        """Raises AssertionError where a count is not that of the slots. Goes through all of them, in parts."""
        held, cached = self._held_in_page, self._cached_in_page
        counts = int(held[1:].sum()), int(cached.sum()), np.count_nonzero(held[1:]), np.count_nonzero(self.lent)
        expected = self.held, self.used - self.held, self.held_pages, self.lent_pages
        assert counts == expected, f"slots held, cached, pages held, lent: {counts}, counted {expected}"
        assert np.array_equal(held + cached > 0, self.lent), "pages lent and pages used differ"
        pages = self._state.reshape(-1, self.per_page)
        free_in_run = self._free_in_run.reshape(len(pages), -1)
        step = max(1, SLOTS_A_PART // self.per_page)
        for first in range(1, len(pages), step):
            part = slice(first, first + step)
            for name, count, state in (("held", held, HELD), ("cached", cached, CACHED)):
                assert np.array_equal((pages[part] == state).sum(axis=1), count[part]), f"{name} slots are miscounted"
            free = (pages[part] == FREE).reshape(-1, free_in_run.shape[1], self.run).sum(axis=2)
            assert np.array_equal(free * self.lent[part, None], free_in_run[part]), "free slots a run are miscounted"
            yield


def _distinct(values: np.ndarray) -> np.ndarray:
    """Each of `values` once, ascending. np.unique loads a large part of numpy when it is first called."""
    first = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])  # slots mostly come in order, so this leaves few
    return np.array(sorted(set(values[first].tolist())), dtype=np.intp)


def _add(counts: np.ndarray, places: np.ndarray, sign: int) -> None:
    """Count each of `places`, any of them several times, up or down."""
    # Of other types it is ten times slower.
    np.add.at(counts, places.astype(np.intp, copy=False), counts.dtype.type(sign))


@dataclass
class Room:
    """What a plan may still take of an arena: slots of both kinds together."""

    arena: Arena
    full: int = 0  # taken so far
    swa: int = 0

    def take(self, full: int, swa: int) -> None:
        self.full += full
        self.swa += swa

    def fits(self, full: int, swa: int) -> bool:
        return self.arena.fits(self.full + full, self.swa + swa)

    def most(self, bound: int) -> int:
        """The most tokens, each with a slot of both kinds, up to `bound`."""
        low, high = 0, bound
        while low < high:
            middle = (low + high + 1) // 2
            if self.fits(middle, middle):
                low = middle
            else:
                high = middle - 1
        return low
