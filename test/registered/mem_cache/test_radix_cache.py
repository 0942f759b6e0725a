"""RadixCache on tiny pools: exact slots, exact eviction order, and the bugs that upstream's tree has had, by name."""

import sys

import numpy as np
import pytest

from sglang.srt.mem_cache.arena import Arena, ArenaShape, SlotAllocator
from sglang.srt.mem_cache.radix_cache import RadixCache
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=2, suite="unit-test-cpu")


def slots_of(size: int) -> SlotAllocator:
    """Slots 1 to `size` in memory of their own."""
    return Arena(ArenaShape.apart(size, 0)).full


class Cache(RadixCache):
    """A cache with its pools, without lots, and insertion of tokens that nobody holds slots for yet."""

    spread = 0.0

    def __init__(self, size: int = 100, window: int | None = None, swa_size: int | None = None):
        super().__init__(slots_of(size), slots_of(swa_size or size) if window else None, window)

    @property
    def locked(self) -> bool:
        return self.evictable()[0] < self.cached()[0]

    def slots(self, count: int, live_from: int = 0):
        """`count` new slots a pool; sliding slots before `live_from` are given back at once."""
        full = self.full.alloc(count)
        if self.swa is None:
            return full, np.zeros(count, dtype=np.int32)
        swa = self.swa.alloc(count)
        self.swa.free(swa[:live_from])
        swa[:live_from] = 0
        return full, swa

    def put(self, ids, live_from: int = 0, key: str | None = None):
        """Insert `ids` as one who computed them all."""
        done = self.insert(ids, key, *self.slots(len(ids), live_from), 0)
        self.check(idle=not self.locked)
        return done

    def length(self, ids, key: str | None = None) -> int:
        return self.match(ids, key).length


def ids(start: int, count: int) -> list[int]:
    return list(range(start, start + count))


# ---- matching, inserting, splitting ----


def test_match_gives_the_inserted_slots():
    cache = Cache()
    assert cache.match([1, 2, 3]).length == 0
    cache.put([5, 6, 7])
    match = cache.match(np.array([5, 6, 7, 8]))
    assert match.length == 3
    assert match.full_slots.tolist() == [1, 2, 3] and match.full_slots.dtype == np.int32
    assert match.swa_slots.tolist() == [0, 0, 0] and match.swa_slots.dtype == np.int32
    assert cache.cached() == (3, 0)
    assert cache.match([]).length == 0


def test_match_may_end_inside_a_node_and_splits_nothing():
    cache = Cache(window=4)
    cache.put(ids(0, 8))
    nodes = len(cache._nodes())
    match = cache.match(ids(0, 6) + [99])
    assert (match.length, match.full_slots.tolist()) == (6, [1, 2, 3, 4, 5, 6])
    assert match.swa_slots.tolist() == [1, 2, 3, 4, 5, 6]
    assert len(cache._nodes()) == nodes
    cache.lock(match.node)
    assert len(cache._nodes()) > nodes
    cache.check(idle=False)
    cache.unlock(match.node)
    assert cache.match(ids(0, 8)).full_slots.tolist() == ids(1, 8)
    cache.check()


def test_the_trees_slots_win_and_duplicates_are_freed():
    cache = Cache(window=4)
    first = cache.put(ids(0, 4))
    full, swa = cache.slots(6)
    assert full.tolist() == ids(5, 6)
    done = cache.insert(ids(0, 4) + [50, 51], None, full, swa, 0)
    assert done.full_slots.tolist() == first.full_slots.tolist() + [9, 10]
    assert done.swa_slots.tolist() == first.swa_slots.tolist() + [9, 10]
    assert cache.full.is_free(np.array([5, 6, 7, 8])).all() and cache.swa.is_free(np.array([5, 6, 7, 8])).all()
    cache.check()


def test_only_owned_positions_are_taken():
    cache = Cache(window=4)
    cache.put(ids(0, 4))
    match = cache.match(ids(0, 4))
    cache.lock(match.node)
    full, swa = cache.slots(3)
    done = cache.insert(
        ids(0, 7), None, np.concatenate([match.full_slots, full]), np.concatenate([match.swa_slots, swa]), match.length
    )
    cache.unlock(match.node)
    assert done.full_slots.tolist() == ids(1, 7)
    assert cache.cached() == (7, 7)
    cache.check()


def test_insert_claims_no_more_than_is_cached():
    cache = Cache()
    with pytest.raises(AssertionError, match="first 2 tokens should be cached, 0 are"):
        cache.insert([1, 2, 3], None, *cache.slots(3), 2)
    with pytest.raises(AssertionError, match="owned from 4 of 3"):
        cache.insert([1, 2, 3], None, *cache.slots(3), 4)


def test_branches_share_their_common_part():
    cache = Cache()
    cache.put([1, 2, 3, 4])
    cache.put([1, 2, 7])
    cache.put([9])
    assert cache.cached() == (6, 0)
    assert cache.match([1, 2, 3, 4]).full_slots.tolist() == [1, 2, 3, 4]
    assert cache.match([1, 2, 7, 7]).full_slots.tolist() == [1, 2, 7]
    assert cache.length([9, 9]) == 1


def test_extra_keys_keep_prefixes_apart():
    cache = Cache()
    slots = {key: cache.put([1, 2, 3], key=key).full_slots.tolist() for key in (None, "", "a")}
    assert len({tuple(s) for s in slots.values()}) == 3
    for key, expected in slots.items():
        assert cache.match([1, 2, 3], key).full_slots.tolist() == expected
    assert cache.length([1, 2, 3], "b") == 0


def test_a_disabled_cache_keeps_nothing():
    full, swa = slots_of(10), slots_of(10)
    cache = RadixCache(full, swa, 4, enabled=False)
    match = cache.match([1, 2])
    assert match.length == 0
    cache.lock(match.node)
    cache.insert([1, 2, 3], None, full.alloc(3), swa.alloc(3), 0)
    cache.unlock(match.node)
    assert cache.evictable() == cache.cached() == (0, 0)
    cache.check()


def test_wrong_construction_is_refused():
    with pytest.raises(ValueError, match="come together"):
        RadixCache(slots_of(4), slots_of(4), None)
    with pytest.raises(ValueError, match="come together"):
        RadixCache(slots_of(4), None, 4)
    with pytest.raises(ValueError, match="at least 2"):
        RadixCache(slots_of(4), slots_of(4), 1)


# ---- locks ----


def test_locked_prefixes_survive_and_their_splits_keep_the_counts():
    cache = Cache(window=4)
    cache.put(ids(0, 12))
    long = cache.match(ids(0, 12)).node
    cache.lock(long)
    assert cache.evictable() == (0, 8)  # sliding slots before the last 4 may go
    short = cache.match(ids(0, 6)).node
    cache.lock(short)
    assert cache.evictable() == (0, 4)
    cache.put(ids(0, 5) + [90])
    cache.evict(100, 100)
    assert cache.cached() == (12, 8)
    cache.check(idle=False)
    cache.unlock(long)
    cache.evict(100, 100)
    assert cache.cached() == (6, 4)
    match = cache.match(ids(0, 12))
    assert match.length == 6 and match.swa_slots.tolist() == [0, 0, 3, 4, 5, 6]
    cache.unlock(short)
    cache.check()
    cache.evict(100, 100)
    assert cache.cached() == (0, 0)
    cache.check()


def test_a_lock_taken_twice_is_given_back_twice():
    cache = Cache(window=4)
    node = cache.put(ids(0, 4)).node
    cache.lock(node)
    cache.lock(node)
    cache.unlock(node)
    assert cache.evictable() == (0, 0)
    cache.unlock(node)
    assert cache.evictable() == (4, 4)
    with pytest.raises(AssertionError, match="unlocked more than locked"):
        cache.unlock(node)


def test_sliding_lock_can_be_released_early():
    cache = Cache(window=4)
    node = cache.put(ids(0, 6)).node
    cache.lock(node)
    cache.release_swa(node)
    assert cache.evictable() == (0, 6)
    cache.evict(0, 6)
    assert cache.cached() == (6, 0)
    cache.check(idle=False)
    cache.unlock(node, swa_released=True)
    assert cache.cached() == (0, 0)  # a leaf that nobody can start from is not kept
    cache.check()


def test_a_match_that_was_evicted_cannot_be_locked():
    cache = Cache(window=4)
    cache.put(ids(0, 8))
    match = cache.match(ids(0, 8))
    cache.evict(8, 0)
    with pytest.raises(AssertionError, match="evicted before it was locked"):
        cache.lock(match.node)


def test_a_match_whose_window_was_evicted_cannot_be_locked():
    cache = Cache(window=4)
    cache.put(ids(0, 12))
    match = cache.match(ids(0, 6))
    cache.evict(0, 8)
    with pytest.raises(AssertionError, match="are gone"):
        cache.lock(match.node)


def test_a_match_that_was_split_can_still_be_locked():
    cache = Cache(window=4)
    cache.put(ids(0, 8))
    match = cache.match(ids(0, 6))
    cache.put(ids(0, 3) + [70])
    cache.put(ids(0, 7) + [80])
    cache.lock(match.node)
    cache.evict(100, 100)
    assert cache.cached() == (6, 4)
    cache.unlock(match.node)
    cache.check()


def test_reset_refuses_while_locked_and_frees_everything_else():
    cache = Cache(window=4)
    node = cache.put(ids(0, 8)).node
    cache.put(ids(50, 8))
    cache.lock(node)
    with pytest.raises(AssertionError, match="8 tokens of the prefix cache are still locked"):
        cache.reset()
    cache.unlock(node)
    cache.reset()
    assert cache.cached() == (0, 0) and cache.full.available() == 100 == cache.swa.available()
    assert cache.length(ids(0, 8)) == 0
    cache.put(ids(0, 8))


# ---- eviction ----


def test_full_slots_go_leaves_first_least_recently_used_first():
    cache = Cache()
    cache.put([1, 2, 3])
    cache.put([1, 2, 4, 5])
    cache.put([8, 9])
    assert cache.length([1, 2, 3]) == 3  # now the most recent
    assert cache.evict(1, 0) == (2, 0)  # [4, 5]
    assert cache.length([1, 2, 4]) == 2  # a use of [1, 2], but not of [3]
    assert cache.evict(1, 0) == (2, 0)  # [8, 9]
    assert cache.length([8]) == 0
    assert cache.evict(1, 0) == (1, 0)  # [3]
    assert cache.match([1, 2, 3]).full_slots.tolist() == [1, 2]
    assert cache.evict(5, 0) == (2, 0)
    assert cache.evict(1, 1) == (0, 0)
    cache.check()


def test_sliding_slots_that_no_window_needs_go_first():
    cache = Cache(window=4)
    cache.put(ids(0, 12))
    assert cache.evict(0, 1) == (0, 8)
    assert cache.match(ids(0, 12)).swa_slots.tolist() == [0] * 8 + [9, 10, 11, 12]
    cache.check()
    assert cache.length(ids(0, 11)) == 11  # the last 4 tokens are one more than 12 needs
    assert cache.length(ids(0, 10)) == 0
    # What is left is a leaf: without its sliding part it would serve nobody, nor would what is above it.
    assert cache.evict(0, 1) == (12, 4)
    cache.check()


def test_only_the_old_part_of_a_matched_node_is_dropped():
    """A lock parts the tail it needs from what is above."""
    cache = Cache(window=4)
    cache.put(ids(0, 16))
    cache.put(ids(50, 4))
    match = cache.match(ids(0, 10))
    cache.lock(match.node)
    cache.unlock(match.node)
    assert sorted((node.start, node.end) for node in cache._nodes()) == [(0, 4), (0, 6), (6, 10), (10, 12), (12, 16)]
    assert sum(cache.evict(0, 1)[1] for _ in range(3)) == 12
    assert (cache.length(ids(50, 4)), cache.length(ids(0, 10)), cache.length(ids(0, 16))) == (4, 0, 16)
    cache.check()


def test_evicting_either_kind_leaves_the_other_branch_usable():
    cache = Cache(size=200, window=8)
    cache.put(ids(0, 32))
    cache.put(ids(100, 32))
    cache.length(ids(0, 32))
    cache.evict(4, 0)
    cache.check()
    assert cache.length(ids(0, 32)) == 32
    assert cache.length(ids(100, 32)) < 32


def test_an_evicted_leaf_takes_dropped_ancestors_along():
    cache = Cache(window=4)
    cache.put(ids(0, 20), live_from=14)
    assert cache.cached() == (20, 6)
    assert cache.evict(1, 0) == (4, 4)
    assert cache.evict(1, 0) == (16, 2)
    cache.check()


def test_dropped_sliding_parts_are_revived_by_who_computes_them_again():
    cache = Cache(window=4)
    cache.put(ids(0, 12), live_from=8)
    assert cache.length(ids(0, 8)) == 0  # the shorter prompt has no window
    full, swa = cache.slots(8, live_from=2)
    done = cache.insert(ids(0, 8), None, full, swa, 0)
    assert done.full_slots.tolist() == ids(1, 8)  # the tree's
    assert done.swa_slots.tolist() == [0, 0, *swa[2:].tolist()]
    assert cache.cached() == (12, 10)
    cache.check()
    match = cache.match(ids(0, 8))
    assert match.length == 8 and match.swa_slots.tolist() == done.swa_slots.tolist()
    assert cache.length(ids(0, 5)) == 5  # tokens 2, 3, 4 are its window
    assert cache.length(ids(0, 4)) == 0


def test_revival_stops_where_the_callers_slots_begin():
    cache = Cache(window=4)
    cache.put(ids(0, 16), live_from=12)
    match = cache.match(ids(0, 16))
    cache.lock(match.node)
    cache.release_swa(match.node)
    cache.evict(0, 100)
    assert cache.cached() == (16, 0)
    full, swa = cache.slots(6)
    done = cache.insert(
        ids(0, 22),
        None,
        np.concatenate([match.full_slots, full]),
        np.concatenate([match.swa_slots, swa]),  # stale below 16: the tree has freed them
        16,
    )
    assert done.swa_slots.tolist() == [0] * 16 + swa.tolist()
    cache.unlock(match.node, swa_released=True)
    cache.check()
    assert cache.length(ids(0, 22)) == 22


def test_check_finds_leaks_and_double_owners():
    cache = Cache(window=4)
    cache.put(ids(0, 8))
    lost = cache.full.alloc(2)
    with pytest.raises(AssertionError, match="full slots: 10 in use, 2 of them held, 8 in the tree: 2 leaked"):
        cache.check()
    cache.check(idle=False)
    cache.full.free(lost)
    with pytest.raises(AssertionError, match="slots .8. are cached, not held"):
        cache.swa.free(np.array([8]))
    cache.swa.evict(np.array([8]))
    with pytest.raises(AssertionError, match="sliding slots: 7 in use, 0 of them held, 8 in the tree, of which 8"):
        cache.check()
    cache.swa.cache(cache.swa.alloc(1))
    cache.check()
    cache.lock(node := cache.match(ids(0, 8)).node)
    with pytest.raises(AssertionError, match="8 are locked while idle"):
        cache.check()
    cache.unlock(node)
    cache._nodes()[0].full[0] = cache._nodes()[0].full[1]
    with pytest.raises(AssertionError, match="slots cached twice"):
        cache.check()
    cache.check(deep=False)


# ---- what goes first ----


def test_sliding_parts_that_nobody_will_ask_for_go_before_older_ones():
    """A long new prompt keeps its last window; what lies before goes before an older prompt's window."""
    cache = Cache(window=4)
    cache.put(ids(50, 4))
    cache.put(ids(0, 20))
    assert [cache.evict(0, 1)[1] for _ in range(2)] == [16, 4]  # before the last window of the new one, the old leaf
    assert (cache.length(ids(0, 20)), cache.length(ids(50, 4))) == (20, 0)


def test_the_window_where_prompts_part_is_kept_as_long_as_any_of_them_is_used():
    cache = Cache(window=4)
    cache.put(ids(0, 12) + ids(100, 8))
    cache.put(ids(0, 12) + ids(200, 8))  # leaves the first at 12
    assert cache.swa.used == 40 - 12
    other = cache.put(ids(300, 4)).full_slots
    cache.length(ids(0, 12) + ids(100, 8))  # in use again, and the junction with it
    while not cache.full.is_free(other).any():
        cache.evict(0, 1)
    assert cache.length(ids(0, 12) + ids(400, 8)) == 12


def test_the_oldest_goes_first_of_either_kind():
    cache = Cache(window=4)
    cache.put(ids(0, 12), live_from=8)
    cache.put(ids(50, 12), live_from=8)
    cache.length(ids(0, 12))
    assert cache.evict_one() and cache.cached() == (12, 4)
    assert cache.length(ids(0, 12)) == 12
    while cache.evict_one():
        cache.check()
    assert not list(cache._queue)
    assert cache.cached() == (0, 0) and cache.full.arena.free_pages == 100
    assert not cache.evict_one()


def prompts(cache: Cache) -> set[int]:
    """First tokens of what is cached."""
    return {token for _, token in cache._root.children}


def test_what_saves_more_stays_longer():
    """A long prompt and short ones cost a window each; the long one, older than all, saves the most."""
    cache = Cache(size=200, window=4)
    cache.put(ids(0, 40), live_from=36)
    for start in (100, 200, 300):
        cache.put(ids(start, 3))
    cache.length(ids(100, 3))
    for left in ({0, 100, 300}, {0, 100}, {0}, set()):
        assert cache.evict_one() and prompts(cache) == left


def test_what_is_not_used_grows_cheap():
    cache = Cache(size=200, window=4)
    cache.put(ids(0, 40), live_from=36)
    for start, left in ((100, {0}), (200, {200})):
        cache.put(ids(start, 20), live_from=16)
        assert cache.evict_one() and prompts(cache) == left


def test_a_window_that_its_conversation_left_behind_goes_before_others():
    cache = Cache(window=4)
    cache.put(ids(50, 12), live_from=8)
    node = cache.put(ids(0, 12), live_from=8).node
    for end in (20, 28):
        cache.lock(node)
        done = cache.insert(ids(0, end), None, *_extend(cache, end, 8), end - 8)
        cache.unlock(node)
        node = done.node
    assert [cache.evict(0, 1) for _ in range(3)] == [(0, 4)] * 3  # two that are no window's, then the one at 12
    assert [cache.length(ids(0, end)) for end in (12, 20, 28)] == [0, 20, 28] and cache.length(ids(50, 12)) == 12


def test_agents_that_take_turns_in_too_little_memory_keep_some_prefixes():
    """By age alone each would lose its prefix just before it comes again."""
    cache = RadixCache(slots_of(100), slots_of(100), 4)
    hits = 0
    for turn in range(120):
        tokens = ids(turn % 6 * 100, 20)
        match = cache.match(tokens)
        hits += match.length > 0
        if match.length:
            continue
        while cache.full.available() < 20:
            cache.evict_one()
        full, swa = cache.full.alloc(20), cache.swa.alloc(20)
        cache.insert(tokens, None, full, swa, 0)
    assert hits > 30
    cache.check()


# ---- bugs upstream has had ----


def test_upstream_26615_a_match_refreshes_only_the_last_window():
    """A long conversation matched again kept all its old sliding slots young, and others lost their windows."""
    cache = Cache(window=4)
    cache.put(ids(0, 12))
    cache.put(ids(50, 4))
    assert cache.length(ids(0, 12)) == 12
    assert cache.evict(0, 8) == (0, 8)  # the old part of the conversation, and not the window of the other prompt
    assert cache.length(ids(50, 4)) == 4
    assert cache.length(ids(0, 12)) == 12


def test_upstream_35515_the_tail_of_a_branch_is_evicted_last():
    """The sliding slots that make a whole branch reusable went before older ones of the same branch."""
    cache = Cache(window=4)
    node = cache.put(ids(0, 4)).node
    for end in (8, 12, 16):  # turns of a conversation
        cache.lock(node)
        done = cache.insert(ids(0, end), None, *_extend(cache, end, 4), end - 4)
        cache.unlock(node)
        node = done.node
    for left in (12, 8):  # then there is one that saves less than the window before it
        assert cache.evict(0, 1) == (0, 4)
        assert cache.cached() == (16, left)
        assert cache.length(ids(0, 16)) == 16
        cache.check()


def _extend(cache: Cache, end: int, count: int):
    full, swa = cache.slots(count)
    below = np.zeros(end - count, dtype=np.int32)
    return np.concatenate([below, full]), np.concatenate([below, swa])


def test_upstream_26907_giving_a_lock_back_does_not_age_the_tail_below():
    """The end of a request unlocks its prompt after its output was inserted; the output's tail must stay younger."""
    cache = Cache(window=4)
    node = cache.put(ids(0, 4)).node
    cache.lock(node)
    cache.insert(ids(0, 16), None, *_extend(cache, 16, 12), 4)
    cache.unlock(node)
    cache.check()
    while cache.cached()[1] > 4:
        cache.evict(0, 1)
        assert cache.length(ids(0, 16)) == 16
    cache.check()


def test_upstream_27009_a_hot_shared_prompt_outlives_cold_tails():
    """Inner nodes were always dropped before leaves, so a prompt that all requests share lost its window first."""
    cache = Cache(window=4, swa_size=60)
    prompt = ids(0, 8)
    for user in range(6):
        match = cache.match(prompt + [100 + user])
        assert match.length == (8 if user else 0)
        cache.lock(match.node)
        full, swa = cache.slots(16 - match.length)
        tokens = prompt + ids(100 + 100 * user, 8)
        below = np.zeros(match.length, dtype=np.int32)
        cache.insert(tokens, None, np.concatenate([below, full]), np.concatenate([below, swa]), match.length)
        cache.unlock(match.node)
        cache.check()
        cache.evict(0, max(0, 20 - cache.swa.available()))
    assert cache.length(prompt + [99]) == 8
    assert cache.length(prompt + ids(500, 8) + ids(600, 8)) >= 8


def test_upstream_34870_the_frontier_is_in_tokens_of_the_caller():
    """A window counted in other units than the ids moved the point up to which a prefix is reusable."""
    window = 5
    cache = Cache(window=window)
    cache.put(ids(0, 20), live_from=10)
    lengths = {n: cache.length(ids(0, n)) for n in range(21)}
    first = 10 + window - 1  # tokens 10 .. 13 are the 4 before position 14
    assert lengths == {n: n if n >= first else 0 for n in range(21)}


def test_upstream_29860_a_leaf_without_sliding_part_is_no_leaf():
    """A leaf left without its sliding part stayed in the tree: never matched, in no order, never evicted."""
    cache = Cache(window=4)
    node = cache.put(ids(0, 12)).node
    cache.lock(node)
    cache.release_swa(node)
    cache.evict(0, 100)
    other = cache.match(ids(0, 12))
    assert other.length == 0
    cache.unlock(node, swa_released=True)
    assert cache.cached() == (0, 0)
    cache.check()


def test_the_same_prompt_again_needs_one_token_before_the_window():
    """At least one token is always computed, so the second run of a prompt starts one token short of it."""
    cache = Cache(window=4)
    cache.put(ids(0, 12))
    cache.evict(0, 8)
    assert cache.cached() == (12, 4)
    assert cache.match(ids(0, 11)).swa_slots.tolist() == [0] * 8 + [9, 10, 11]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
