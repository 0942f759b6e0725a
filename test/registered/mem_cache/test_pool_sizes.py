"""How memory is shared out between the two KV pools."""

import sys
from typing import NamedTuple

import pytest

from sglang.srt.mem_cache.pool_sizes import pool_sizes
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=2, suite="unit-test-cpu")


class Layer(NamedTuple):
    layer: int
    sliding: bool
    num_kv_heads: int
    head_dim: int


SMALL = [Layer(0, True, 2, 8), Layer(1, True, 2, 8), Layer(3, False, 1, 16)]  # layer 2 shares another layer's KV
GEMMA = [Layer(i, False, 2, 512) if i % 6 == 5 else Layer(i, True, 8, 256) for i in range(30)]  # 26B-A4B


def sizes(budget, layers=GEMMA, **changes):
    args = dict(
        dtype_bytes=2,
        window=1024,
        max_running_requests=64,
        chunked_prefill_size=8192,
        swa_full_tokens_ratio=0.8,
        context_len=131072,
    )
    return pool_sizes(budget, layers, **(args | changes))


@pytest.mark.parametrize("running", [1, 8, 64, 256])
@pytest.mark.parametrize("gib", [4, 40, 90])
def test_the_budget_is_used_up_and_not_passed(running, gib):
    full, swa = sizes(gib << 30, max_running_requests=running)
    used = full * 20480 + swa * 204800
    assert used <= gib << 30
    assert (gib << 30) - used < 2 * (20480 + 204800)


def test_sliding_pool_follows_demand_and_the_rest_is_full_tokens():
    """Upstream gives the sliding pool 0.8 of the full one, which no 8 requests can use."""
    full, swa = sizes(80 << 30, max_running_requests=8)
    held = 1024 + 128 + 2
    assert swa == 8 * 2 * held + 8192
    assert full == ((80 << 30) - swa * 204800) // 20480


def test_ratio_bounds_the_sliding_pool():
    full, swa = sizes(80 << 30, max_running_requests=1000)
    assert swa == int(0.8 * full)
    full, swa = sizes(80 << 30, max_running_requests=1000, swa_full_tokens_ratio=0.1)
    assert swa == int(0.1 * full)


def test_low_ratio_still_leaves_room_for_one_request():
    full, swa = sizes(3 << 30, swa_full_tokens_ratio=0.01)
    assert swa == 1024 + (1024 + 128 + 2) + 8192  # the locked window it started from, its own, a chunk
    assert full > swa


def test_short_contexts_need_no_whole_window():
    _, swa = sizes(4 << 30, max_running_requests=4, context_len=100)
    assert swa == 4 * 2 * 100 + 8192  # a chunk may hold many requests' prompts
    _, swa = sizes(4 << 30, max_running_requests=4, context_len=100, chunked_prefill_size=-1)
    assert swa == 4 * 2 * 100 + 100


def test_max_total_tokens_sets_or_limits_the_full_pool():
    assert sizes(80 << 30, max_total_tokens=20000) == (20000, 16000)
    assert sizes(80 << 30, max_total_tokens=50) == (50, 50)
    assert sizes(4 << 30, max_total_tokens=10**9) == sizes(4 << 30)
    assert sizes(1 << 30, layers=[Layer(0, False, 1, 64)], max_total_tokens=77) == (77, 0)


def test_without_sliding_layers_all_is_full_tokens():
    assert sizes(1 << 30, layers=[Layer(0, False, 1, 64)], window=None) == ((1 << 30) // 256, 0)


@pytest.mark.parametrize("budget", [-1, 0, 10**6, 10**9])
def test_a_budget_too_small_for_one_request_says_so(budget):
    with pytest.raises(ValueError, match="one request needs 10370 .*--mem-fraction-static"):
        sizes(budget)
    with pytest.raises(ValueError, match="one request needs 8192"):
        sizes(min(budget, 10**6), layers=[Layer(0, False, 1, 64)], window=None)


def test_small_total_needs_only_its_own_memory():
    assert sizes(50 * 225280, max_total_tokens=50) == (50, 50)
    with pytest.raises(ValueError, match="holds 49 tokens"):
        sizes(50 * 225280 - 1, max_total_tokens=50)


def test_sliding_layers_alone_are_refused():
    with pytest.raises(ValueError, match="full-attention layer"):
        sizes(1 << 30, layers=[Layer(0, True, 1, 64)])
    with pytest.raises(ValueError, match="without a window"):
        sizes(1 << 30, window=None)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
