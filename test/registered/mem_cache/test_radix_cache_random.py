"""Random requests against RadixCache, with a model of every slot beside it.

Each computed token leaves a mark of its whole prefix in its slots, as a model's K and V would. So a slot that is freed
too early, owned twice, or given out for other tokens shows as a wrong mark wherever a request looks.
"""

import sys
from dataclasses import dataclass

import numpy as np
import pytest

from sglang.srt.mem_cache.arena import Arena, ArenaShape
from sglang.srt.mem_cache.radix_cache import Anchor, RadixCache
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=6, suite="unit-test-cpu")

KEYS = [None, "a"]


@dataclass
class Request:
    """As KVManager keeps one: positions below `owned_from` are the tree's."""

    ids: list[int]
    key: str | None
    marks: np.ndarray  # of each prefix of ids
    computed: int
    owned_from: int
    swa_start: int
    anchor: Anchor
    full: np.ndarray
    swa: np.ndarray
    swa_released: bool = False


class Simulation:
    def __init__(self, seed: int, window: int | None, full_size: int, swa_size: int):
        self.rng = np.random.default_rng(seed)
        self.window = window
        arena = Arena(ArenaShape.apart(full_size, swa_size if window else 0))
        self.full, self.swa = arena.full, arena.swa
        self.cache = RadixCache(self.full, self.swa, window)
        self.full_marks, self.swa_marks = np.zeros((2, full_size + swa_size + 1), dtype=np.int64)
        self.running: list[Request] = []
        # What the tree should hold, as place() names it: its full slot and its sliding slot (0: dropped).
        self.held: dict[tuple, list[int]] = {}
        self.prompts: list[list[int]] = [[]]
        self.counts: dict[str, int] = {}

    # ---- the model ----

    def place(self, ids: list[int], key: str | None, i: int) -> tuple:
        """Token `i` in the tree."""
        return key, tuple(ids[: i + 1]), i

    def window_start(self, length: int) -> int:
        return max(0, length - (self.window - 1))

    def expected_match(self, ids: list[int], key: str | None) -> int:
        longest = 0
        for length in range(1, len(ids) + 1):
            if self.place(ids, key, length - 1) not in self.held:
                break
            needed = range(self.window_start(length), length) if self.window else ()
            if all(self.held[self.place(ids, key, i)][1] for i in needed):
                longest = length
        return longest

    def after_insert(self, req: Request, n: int) -> None:
        """Tokens the tree lacked and sliding slots it had dropped are now the request's; it keeps all others."""
        for i in range(req.owned_from, n):
            slots = self.held.setdefault(self.place(req.ids, req.key, i), [int(req.full[i]), 0])
            slots[1] = slots[1] or int(req.swa[i])

    def forget_freed(self) -> tuple[int, int]:
        """Take out of the model what the pools say is free; returns how many full and sliding slots that was."""
        full = swa = 0
        for prefix, slots in list(self.held.items()):
            if slots[1] and self.swa.is_free(np.array(slots[1])):
                slots[1] = 0
                swa += 1
            if self.full.is_free(np.array(slots[0])):
                assert slots[1] == 0, "a token without its full slot kept the sliding one"
                del self.held[prefix]
                full += 1
        return full, swa

    def check(self) -> None:
        self.cache.check(idle=not self.running)
        cached = [len(self.held), sum(slots[1] != 0 for slots in self.held.values())]
        assert list(self.cache.cached()) == cached
        for pool, index, owned_start in ((self.full, 0, "owned_from"), (self.swa, 1, "swa_start")):
            if pool is None:
                continue
            owned = [slots[index] for slots in self.held.values() if slots[index]]
            for req in self.running:
                table = (req.full, req.swa)[index]
                owned.extend(table[getattr(req, owned_start) : req.computed].tolist())
            assert len(set(owned)) == len(owned), "a slot has two owners"
            assert pool.used == len(owned), "a slot has no owner"
        for req in self.running:
            self.check_request(req)

    def check_request(self, req: Request) -> None:
        """What the next token attends to is there."""
        n = req.computed
        assert np.array_equal(self.full_marks[req.full[:n]], req.marks[:n])
        if self.window:
            start = self.window_start(n)
            assert req.swa[start:n].all()
            assert np.array_equal(self.swa_marks[req.swa[start:n]], req.marks[start:n])

    # ---- what requests do ----

    def tokens(self) -> list[int]:
        """A prompt that often shares the beginning of an earlier one."""
        base = self.prompts[self.rng.integers(len(self.prompts))]
        shared = base[: self.rng.integers(len(base) + 1)] if self.rng.random() < 0.7 else base
        ids = shared + self.rng.integers(0, 3, self.rng.integers(1, 30)).tolist()
        ids = ids[:60]
        self.prompts = self.prompts[-30:] + [ids]
        return ids

    def match(self, ids: list[int], key: str | None):
        expected = self.expected_match(ids, key)
        match = self.cache.match(ids if self.rng.random() < 0.5 else np.array(ids, dtype=np.int64), key)
        assert match.length == expected == len(match.full_slots) == len(match.swa_slots)
        slots = [self.held[self.place(ids, key, i)] for i in range(match.length)]
        assert match.full_slots.tolist() == [s[0] for s in slots]
        assert match.swa_slots.tolist() == [s[1] for s in slots]
        return match

    def probe(self) -> None:
        self.match(self.tokens(), KEYS[self.rng.integers(2)])

    def admit(self) -> None:
        if len(self.running) >= 4:
            return
        ids, key = self.tokens(), KEYS[self.rng.integers(2)]
        match = self.match(ids[:-1], key)
        self.cache.lock(match.node)
        if self.rng.random() < 0.2:  # it does not fit after all
            self.cache.unlock(match.node)
            self.forget_freed()
            return
        marks = np.array([hash((key, tuple(ids[: i + 1]))) for i in range(len(ids))], dtype=np.int64)
        full, swa = (np.zeros(len(ids) + 1, dtype=np.int32) for _ in range(2))
        full[: match.length], swa[: match.length] = match.full_slots, match.swa_slots
        n = match.length
        self.running.append(Request(ids, key, marks, n, n, n, match.node, full, swa))

    def pick(self) -> Request | None:
        return self.running[self.rng.integers(len(self.running))] if self.running else None

    def compute(self) -> None:
        """Some more tokens of a request, with eviction where slots are short."""
        req = self.pick()
        left = len(req.ids) - req.computed if req else 0
        if left == 0:
            return
        count = int(self.rng.integers(1, left + 1))
        short_full = max(0, count - self.full.available())
        short_swa = max(0, count - self.swa.available()) if self.swa else 0
        evictable = self.cache.evictable()
        if short_full > evictable[0] or short_swa > evictable[1]:
            self.finish(req, keep=self.rng.random() < 0.5)
            self.counts["retracted"] = self.counts.get("retracted", 0) + 1
            return
        if short_full or short_swa:
            self.evict(short_full, short_swa)
            self.counts["forced"] = self.counts.get("forced", 0) + 1
        start, end = req.computed, req.computed + count
        req.full[start:end] = self.full.alloc(count)
        self.full_marks[req.full[start:end]] = req.marks[start:end]
        if self.swa:
            req.swa[start:end] = self.swa.alloc(count)
            self.swa_marks[req.swa[start:end]] = req.marks[start:end]
        req.computed = end

    def trim(self) -> None:
        req = self.pick()
        if req is None or not self.window:
            return
        keep_from = self.window_start(req.computed)
        if keep_from > req.swa_start:
            self.swa.free(req.swa[req.swa_start : keep_from].copy())
            req.swa[req.swa_start : keep_from] = 0
            req.swa_start = keep_from
        if keep_from >= req.owned_from and not req.swa_released:
            self.cache.release_swa(req.anchor)
            req.swa_released = True

    def share(self) -> None:
        """Put what is computed into the tree and go on from there."""
        req = self.pick()
        if req is None:
            return
        n = req.computed
        done = self.cache.insert(req.ids[:n], req.key, req.full[:n], req.swa[:n], req.owned_from)
        self.after_insert(req, n)
        self.cache.lock(done.node)
        self.cache.unlock(req.anchor, swa_released=req.swa_released)
        self.forget_freed()
        slots = [self.held[self.place(req.ids, req.key, i)] for i in range(n)]
        assert done.full_slots.tolist() == [s[0] for s in slots] and done.swa_slots.tolist() == [s[1] for s in slots]
        req.full[:n], req.swa[:n] = done.full_slots, done.swa_slots
        req.anchor, req.owned_from, req.swa_start, req.swa_released = done.node, n, n, False

    def finish_one(self) -> None:
        if req := self.pick():
            self.finish(req, keep=self.rng.random() < 0.7)

    def finish(self, req: Request, keep: bool) -> None:
        n, start = req.computed, req.owned_from
        if keep:
            self.cache.insert(req.ids[:n], req.key, req.full[:n], req.swa[:n], start)
            self.after_insert(req, n)
        else:
            self.full.free(req.full[start:n])
            if self.swa:
                self.swa.free(req.swa[start:n])
        self.cache.unlock(req.anchor, swa_released=req.swa_released)
        self.running = [r for r in self.running if r is not req]
        self.forget_freed()

    def evict(self, full: int, swa: int) -> None:
        before = self.cache.evictable()
        locked = [self.held[self.place(req.ids, req.key, i)][0] for req in self.running for i in range(req.owned_from)]
        freed = self.cache.evict(full, swa)
        assert self.forget_freed() == freed
        assert freed[0] >= min(full, before[0]) and freed[1] >= min(swa, before[1])
        assert self.cache.evictable() == (before[0] - freed[0], before[1] - freed[1])
        assert not self.full.is_free(np.array(locked, dtype=np.int32)).any()

    def evict_some(self) -> None:
        amounts = self.rng.integers(0, 12, 2)
        self.evict(int(amounts[0]), int(amounts[1]) if self.swa else 0)

    def drain(self) -> None:
        while self.running:
            self.finish(self.running[0], keep=True)
        self.check()
        if self.rng.random() < 0.5:
            self.cache.reset()
        else:
            self.evict(10**6, 10**6 if self.swa else 0)
        self.forget_freed()
        assert not self.held and self.full.used == 0

    def run(self, steps: int) -> None:
        names = ["admit", "compute", "trim", "share", "finish_one", "probe", "evict_some", "drain"]
        odds = np.array([0.2, 0.33, 0.15, 0.1, 0.08, 0.08, 0.055, 0.005])
        for name in self.rng.choice(names, steps, p=odds / odds.sum()).tolist():
            self.counts[name] = self.counts.get(name, 0) + 1
            getattr(self, name)()
            self.check()
        self.drain()
        for event in ("retracted", "forced", "drain"):  # else the pools were not tight enough to test anything
            assert self.counts.get(event, 0) > 3, self.counts


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "window, full_size, swa_size",
    [
        (None, 75, 1),
        (2, 90, 45),
        (6, 90, 60),
        (9, 120, 72),
        (100, 90, 70),  # longer than any prompt
    ],
)
def test_random_requests(window, full_size, swa_size, seed):
    Simulation(seed, window, full_size, swa_size).run(2500)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
