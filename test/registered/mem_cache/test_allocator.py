"""SlotAllocator: exact slots, whole pages, and loud errors for slots given back wrongly."""

import sys

import numpy as np
import pytest

from sglang.srt.mem_cache.allocator import SlotAllocator
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=2, suite="unit-test-cpu")


def test_slots_start_at_one_and_come_in_order():
    pool = SlotAllocator(5)
    assert pool.available() == 5
    first = pool.alloc(3)
    assert first.dtype == np.int32 and first.tolist() == [1, 2, 3]
    assert pool.alloc(2).tolist() == [4, 5]
    assert pool.available() == 0


def test_alloc_beyond_what_is_free_changes_nothing():
    pool = SlotAllocator(4)
    pool.alloc(3)
    assert pool.alloc(2) is None
    assert pool.available() == 1
    assert pool.alloc(1).tolist() == [4]
    assert pool.alloc(0).tolist() == []


def test_freed_slots_come_again_in_the_same_order():
    pool = SlotAllocator(6)
    pool.alloc(6)
    pool.free(np.array([5, 2, 4]))
    assert pool.alloc(3).tolist() == [5, 2, 4]


def test_free_ignores_zeros():
    pool = SlotAllocator(4)
    pool.alloc(4)
    pool.free(np.array([0, 3, 0, 0, 1], dtype=np.int64))
    assert pool.available() == 2
    pool.free(np.zeros(3, dtype=np.int32))
    pool.free(np.zeros(0, dtype=np.int32))
    assert pool.available() == 2


@pytest.mark.parametrize(
    "slots, message",
    [
        ([2], "double free"),
        ([1, 1], "given twice"),
        ([5], "freed slots"),
        ([-1], "freed slots"),
        ([1, 99], "freed slots"),
    ],
)
def test_wrong_frees_raise(slots, message):
    pool = SlotAllocator(4)
    pool.alloc(1)
    with pytest.raises(AssertionError, match=message):
        pool.free(np.array(slots))


def test_free_does_not_keep_or_change_the_callers_array():
    pool = SlotAllocator(3)
    slots = pool.alloc(3)
    pool.free(slots)
    assert slots.tolist() == [1, 2, 3]
    slots[:] = 0
    assert pool.alloc(3).tolist() == [1, 2, 3]


def test_reset_takes_everything_back():
    pool = SlotAllocator(3)
    pool.alloc(2)
    pool.reset()
    assert pool.available() == 3
    assert pool.is_free(np.array([1, 2, 3])).all()
    assert pool.alloc(3).tolist() == [1, 2, 3]


def test_pages_are_consecutive_slots_and_page_zero_is_padding():
    pool = SlotAllocator(11, page_size=4)
    assert pool.size == pool.available() == 8
    assert pool.alloc(8).tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    pool.free(np.array([8, 9, 10, 11, 0, 0, 0, 0]))
    assert pool.available() == 4
    assert pool.is_free(np.array([4, 11])).tolist() == [False, True]


@pytest.mark.parametrize("slots", [[4, 5], [5, 6, 7, 8], [4, 5, 6, 8]])
def test_part_of_a_page_cannot_be_freed(slots):
    pool = SlotAllocator(8, page_size=4)
    pool.alloc(8)
    with pytest.raises(AssertionError, match="whole pages"):
        pool.free(np.array(slots))
    assert pool.available() == 0


def test_part_of_a_page_cannot_be_allocated():
    with pytest.raises(AssertionError, match="whole pages"):
        SlotAllocator(8, page_size=4).alloc(6)


@pytest.mark.parametrize("size, page_size", [(0, 1), (3, 4), (-1, 1), (8, 0)])
def test_a_pool_holds_at_least_a_page(size, page_size):
    with pytest.raises(ValueError, match="does not hold"):
        SlotAllocator(size, page_size)


@pytest.mark.parametrize("page_size", [1, 4])
def test_random_use_keeps_every_slot_with_one_owner(page_size):
    rng = np.random.default_rng(0)
    pool = SlotAllocator(64 * page_size, page_size)
    held: list[np.ndarray] = []
    for _ in range(2000):
        if held and rng.random() < 0.5:
            slots = held.pop(rng.integers(len(held)))
            pool.free(slots)
            assert pool.is_free(slots).all()
        else:
            count = int(rng.integers(0, 20)) * page_size
            slots = pool.alloc(count)
            assert (slots is None) == (count > pool.size - sum(map(len, held)))
            if slots is not None:
                held.append(slots)
        owned = np.concatenate([np.zeros(0, np.int32), *held])
        assert len(np.unique(owned)) == len(owned) == pool.size - pool.available()
        assert not pool.is_free(owned).any()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
