"""KV buffers of both pools."""

import sys

import pytest
import torch

from sglang.srt.configs.kv_layers import KVLayerSpec as Layer
from sglang.srt.layers.attention.kv_pool import HybridKVPool, KVPool
from sglang.srt.mem_cache.pool_sizes import token_bytes
from sglang.srt.ops.attention.kv_slots import KVSlots
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=5, suite="base-a-test-cpu")


SMALL = [Layer(0, True, 2, 8), Layer(1, True, 2, 8), Layer(3, False, 1, 16)]  # layer 2 shares another layer's KV


def test_pool_writes_and_reads_slots():
    pool = KVPool(6, [4], 2, 3, torch.float32, "cpu")
    k, v = pool.get_kv(4)
    assert k.shape == v.shape == (7, 2, 3)
    assert not k.any() and not v.any()
    new_k, new_v = torch.randn(2, 2, 3), torch.randn(2, 2, 3)
    KVSlots(k, v, torch.tensor([6, 1])).write(new_k, new_v)
    assert torch.equal(k[[6, 1]], new_k) and torch.equal(v[[6, 1]], new_v)
    assert not k[[0, 2, 3, 4, 5]].any()
    assert pool.bytes_per_token == 2 * 2 * 3 * 4


def test_hybrid_pool_sends_each_layer_to_its_own_pool():
    pool = HybridKVPool(SMALL, 10, 5, torch.bfloat16, "cpu")
    assert [pool.is_sliding(i) for i in (0, 1, 3)] == [True, True, False]
    assert pool.get_kv(0)[0].shape == (6, 2, 8)
    assert pool.get_kv(3)[0].shape == (11, 1, 16)
    pool.get_kv(1)[0][5] = 1
    assert not pool.get_kv(1)[1].any()
    assert not pool.get_kv(0)[0].any()
    assert (pool.full_bytes_per_token, pool.swa_bytes_per_token) == (64, 128) == token_bytes(SMALL, 2)
    with pytest.raises(KeyError):
        pool.get_kv(2)


def test_pool_without_sliding_layers():
    pool = HybridKVPool([Layer(0, False, 1, 4)], 3, 0, torch.float32, "cpu")
    assert pool.swa is None and pool.swa_bytes_per_token == 0


def test_pages_pad_with_a_whole_page():
    pool = HybridKVPool(SMALL, 8, 4, torch.float32, "cpu", page_size=4)
    assert len(pool.get_kv(3)[0]) == 12 and len(pool.get_kv(0)[0]) == 8


def test_layers_of_one_pool_share_a_geometry():
    with pytest.raises(ValueError, match=r"\(1, 16\), \(2, 8\)"):
        HybridKVPool([Layer(0, False, 2, 8), Layer(1, False, 1, 16)], 4, 4, torch.float32, "cpu")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
