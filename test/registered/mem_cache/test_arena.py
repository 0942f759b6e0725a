"""Arena: every byte has one owner, whatever is taken, shared, given up and given back; what is counted can be had."""

import sys

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sglang.srt.mem_cache.arena import Arena, ArenaShape, Room
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=12, suite="unit-test-cpu")

RUNS = ArenaShape(6, 20, 8, 120, 48, 4)


def arena(**changes) -> Arena:
    return Arena(RUNS._replace(**changes))


class AnyUse(RuleBasedStateMachine):
    """Two kinds of slots in one arena beside a list of the slots that somebody has."""

    @initialize(
        shape=st.sampled_from(
            [
                RUNS,
                ArenaShape(9, 1, 1, 5, 5),
                ArenaShape(7, 2, 5, 14, 20),
                ArenaShape(5, 8, 8, 30, 40, 8),
                RUNS._replace(swa_per_page=0),
            ]
        )
    )
    def begin(self, shape: ArenaShape) -> None:
        self.arena = Arena(shape)
        self.kinds = [kind for kind in (self.arena.full, self.arena.swa) if kind is not None]
        self.held: list[list[np.ndarray]] = [[] for _ in self.kinds]  # by kind
        self.cached: list[list[np.ndarray]] = [[] for _ in self.kinds]

    def take(self, data, lists, kind: int) -> np.ndarray | None:
        """A part of what a list of this kind has, which is taken out of it."""
        if not lists[kind]:
            return None
        slots = lists[kind].pop(data.draw(st.integers(0, len(lists[kind]) - 1)))
        cut = data.draw(st.integers(1, len(slots)))
        if cut < len(slots):
            lists[kind].append(slots[cut:])
        return slots[:cut]

    @rule(data=st.data(), count=st.integers(1, 30), swa=st.integers(0, 12))
    def alloc(self, data, count: int, swa: int) -> None:
        """Both kinds at once, as a step does; it works where has() says so and changes nothing elsewhere."""
        wanted = [count, swa][: len(self.kinds)]
        after = [
            int(data.draw(st.sampled_from(held))[-1]) if held and data.draw(st.booleans()) else 0 for held in self.held
        ]
        if not self.arena.has(count, swa):
            if count > self.kinds[0].available():
                assert self.kinds[0].alloc(count) is None
            return
        keep = self.kinds[1].pages_for(swa) if len(self.kinds) > 1 else 0
        for kind, n, behind, keep_pages in zip(range(2), wanted, after, (keep, 0), strict=False):
            got = self.kinds[kind].alloc(n, behind, keep_pages)
            assert len(got) == n and got.dtype == np.int32
            if n:
                self.held[kind].append(got)

    @rule(data=st.data(), count=st.integers(1, 3))
    def extend(self, data, count: int) -> None:
        rows = [len(held) for held in self.held]
        if 0 in rows or not self.arena.has(rows[0] * count, rows[-1] * count):
            return
        keep = self.kinds[1].pages_for(rows[1] * count) if len(self.kinds) > 1 else 0
        for kind, keep_pages in zip(range(len(self.kinds)), (keep, 0), strict=False):
            last = np.array([slots[-1] for slots in self.held[kind]], dtype=np.int32)
            got = self.kinds[kind].extend(last, count, keep_pages).reshape(-1, count)
            self.held[kind] = [np.concatenate(pair) for pair in zip(self.held[kind], got, strict=True)]

    @rule(data=st.data(), kind=st.integers(0, 1), verb=st.sampled_from(["free", "cache", "hold", "evict"]))
    def change(self, data, kind: int, verb: str) -> None:
        kind %= len(self.kinds)
        before, after = {
            "free": (self.held, None),
            "cache": (self.held, self.cached),
            "hold": (self.cached, self.held),
            "evict": (self.cached, None),
        }[verb]
        slots = self.take(data, before, kind)
        if slots is None:
            return
        getattr(self.kinds[kind], verb)(slots)
        if after is not None:
            after[kind].append(slots)

    @rule(full=st.integers(0, 120), swa=st.integers(0, 50))
    def whatever_fits_can_be_had_after_evictions(self, full: int, swa: int) -> None:
        fits = self.arena.fits(full, swa)
        for kind, parts in zip(self.kinds, self.cached, strict=True):
            for slots in parts:
                kind.evict(slots)
            parts.clear()
        assert self.arena.has(full, swa) == fits
        room = Room(self.arena)
        most = room.most(60)
        assert room.fits(most, most) and (most == 60 or not room.fits(most + 1, most + 1))

    @invariant()
    @precondition(lambda self: hasattr(self, "arena"))
    def every_byte_has_one_owner(self) -> None:
        self.arena.check_deep()
        shape = self.arena.shape
        owned = np.zeros((shape.num_pages + 1) * shape.full_per_page * max(1, shape.swa_per_page), dtype=np.int32)
        sizes = max(1, shape.swa_per_page), shape.full_per_page  # bytes of a slot, if a page has full x swa of them
        for kind, allocator in enumerate(self.kinds):
            for parts, name in ((self.held, "held"), (self.cached, "cached")):
                slots = np.concatenate([np.zeros(0, dtype=np.int32), *parts[kind]])
                for slot in slots.tolist():
                    owned[slot * sizes[kind] : (slot + 1) * sizes[kind]] += 1
                counted = allocator.held if name == "held" else allocator.used - allocator.held
                assert counted == len(slots)
            assert allocator.used <= allocator.size
        assert owned.max(initial=0) <= 1 and not owned[: shape.full_per_page * sizes[0]].any()


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_slots_start_behind_the_padding_page_and_come_in_order():
    got = arena()
    assert got.full.alloc(5).tolist() == [20, 21, 22, 23, 24]
    assert got.swa.alloc(3).tolist() == [16, 17, 18]  # the first page went to the other kind
    assert got.full.alloc(2).tolist() == [28, 29]  # a run of its own
    assert got.full.alloc(0).tolist() == []


def test_a_request_goes_on_behind_its_last_slot():
    got = arena()
    first, other = got.full.alloc(3), got.full.alloc(3)
    assert got.full.alloc(6, after=int(first[-1])).tolist() == [23, 28, 29, 30, 31, 32]
    assert got.full.extend(np.array([other[-1], 32], dtype=np.int32), 1).tolist() == [27, 33]


def test_runs_of_neighbours_while_there_is_room():
    """64 requests that grow a token at a time, as decoding does, beside each other."""
    got = Arena(ArenaShape(100, 640, 64, 64000, 6400, 64))
    last = np.array([got.full.alloc(1)[0] for _ in range(64)], dtype=np.int32)
    tables = [last]
    for _ in range(255):
        tables.append(got.full.extend(tables[-1], 1))
    steps = np.diff(np.array(tables), axis=0)
    assert (steps == 1).mean() > 0.98  # all but one of a run
    got.check_deep()


def test_who_begins_at_one_cached_slot_goes_on_apart():
    got = arena()
    prefix = got.full.alloc(2)
    slots = got.full.extend(np.full(6, prefix[-1], dtype=np.int32), 2)
    assert len(set(slots.tolist())) == 12


def test_partly_used_runs_serve_when_nothing_else_is_left():
    got = arena(num_pages=1, full_size=20, swa_per_page=0)
    slots = got.full.alloc(20)
    got.full.free(slots[[1, 6, 7, 13]])
    assert got.full.alloc(5) is None
    assert sorted(got.full.alloc(4).tolist()) == sorted(slots[[1, 6, 7, 13]].tolist())


def test_memory_goes_to_the_kind_that_asks_and_comes_back():
    got = arena()
    full = got.full.alloc(120)
    assert got.swa.alloc(1) is None and not got.fits(0, 1) and got.free_pages == 0
    got.full.free(full[:39])
    assert got.free_pages == 1 and got.swa.alloc(8) is not None
    got.full.cache(full[39:])
    assert got.fits(0, 40) and not got.has(0, 1)
    got.full.evict(full[39:])
    assert got.has(0, 40) and got.swa.alloc(40) is not None


def test_pages_are_kept_for_the_other_kind():
    """Free slots in partly used runs are taken before the last page, which the other kind needs."""
    got = arena(num_pages=2, full_size=40, swa_size=16)
    slots = got.full.alloc(20)
    got.full.free(slots[::2])
    assert got.has(10, 8)
    assert sorted(got.full.alloc(10, keep_pages=got.swa.pages_for(8)).tolist()) == sorted(slots[::2].tolist())
    assert len(got.swa.alloc(8)) == 8


def test_sizes_bound_a_kind():
    got = arena(swa_size=5)
    assert got.swa.alloc(6) is None and len(got.swa.alloc(5)) == 5
    assert not got.fits(1, 1) and got.fits(100, 0) and not got.fits(101, 0)


@pytest.mark.parametrize("verb", ["free", "cache"])
@pytest.mark.parametrize(
    "slots, message",
    [([25], "are free, not held"), ([20, 20], "given twice"), ([19], "slots 19..19"), ([20, 140], "slots 20..140")],
)
def test_wrong_slots_raise_and_change_nothing(verb, slots, message):
    got = arena()
    got.full.alloc(4)
    with pytest.raises(AssertionError, match=message):
        getattr(got.full, verb)(np.array(slots))
    if message != "given twice":
        got.check_deep()


def test_cached_slots_are_nobodys_to_free():
    got = arena()
    slots = got.full.alloc(4)
    got.full.cache(slots)
    with pytest.raises(AssertionError, match="are cached, not held"):
        got.full.free(slots[:1])
    with pytest.raises(AssertionError, match="are cached, not held"):
        got.full.cache(slots)
    got.full.free(np.zeros(3, dtype=np.int32))  # zeros are no slots
    got.full.hold(slots)
    got.full.free(slots)
    got.check_deep()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="runs of 3"):
        arena(run=3)
    with pytest.raises(ValueError, match="do not hold 121"):
        arena(full_size=121)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
