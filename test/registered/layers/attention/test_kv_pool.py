"""KV memory as the slots of both kinds of layer."""

import sys

import pytest
import torch

from sglang.srt.configs.kv_layers import KVLayerSpec as Layer
from sglang.srt.layers.attention.kv_pool import KVArena
from sglang.srt.mem_cache.arena import ArenaShape
from sglang.srt.ops.attention.kv_slots import KVSlots
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=5, suite="base-a-test-cpu")

SMALL = [Layer(0, True, 2, 8), Layer(1, True, 2, 8), Layer(3, False, 1, 16)]  # layer 2 shares another layer's KV
SHAPE = ArenaShape(3, 4, 2, 12, 6)  # a full slot is 32 elements, a sliding one 64


def test_slots_of_a_layer_are_written_and_read():
    pool = KVArena([Layer(4, False, 2, 3)], ArenaShape(6, 1, 0, 6, 0), torch.float32, "cpu")
    k, v = pool.get_kv(4)
    assert k.shape == v.shape == (7, 2, 3)
    assert not k.any() and not v.any()
    new_k, new_v = torch.randn(2, 2, 3), torch.randn(2, 2, 3)
    KVSlots(k, v, torch.tensor([6, 1])).write(new_k, new_v)
    assert torch.equal(k[[6, 1]], new_k) and torch.equal(v[[6, 1]], new_v)
    assert not k[[0, 2, 3, 4, 5]].any()
    assert pool.nbytes == 7 * 2 * 2 * 3 * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_each_layer_has_its_own_part_of_a_slot(dtype: torch.dtype):
    pool = KVArena(SMALL, SHAPE, dtype, "cpu")
    assert [pool.is_sliding(i) for i in (0, 1, 3)] == [True, True, False] and pool.layers == [0, 1, 3]
    assert pool.get_kv(0)[0].shape == (8, 2, 8) and pool.get_kv(3)[0].shape == (16, 1, 16)
    assert pool.nbytes == 4 * 128 * dtype.itemsize
    pool.get_kv(1)[0][5] = 1
    others = [*pool.get_kv(0), pool.get_kv(1)[1]]
    assert not any(buffer.any() for buffer in others)
    with pytest.raises(KeyError):
        pool.get_kv(2)


def test_both_kinds_lie_in_the_same_pages():
    """Every full slot lies upon the sliding ones of its own page and upon no other."""
    pool = KVArena(SMALL, SHAPE, torch.float32, "cpu")
    for slot in range(16):
        pool.buffer.zero_()
        for buffer in pool.get_kv(3):
            buffer[slot] = 1
        touched = {int(s) for layer in (0, 1) for b in pool.get_kv(layer) for s in b.flatten(1).any(1).nonzero()}
        assert touched == {slot // 2}
        assert pool.buffer.count_nonzero() == 32


def test_layers_of_one_kind_share_a_geometry():
    with pytest.raises(ValueError, match=r"\(1, 16\), \(2, 8\)"):
        KVArena([Layer(0, False, 2, 8), Layer(1, False, 1, 16)], ArenaShape(4, 1, 0, 4, 0), torch.float32, "cpu")


def test_pages_that_one_kind_does_not_fill_are_refused():
    with pytest.raises(ValueError, match="4 full and 3 sliding slots fill no page alike"):
        KVArena(SMALL, ArenaShape(3, 4, 3, 12, 9), torch.float32, "cpu")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
