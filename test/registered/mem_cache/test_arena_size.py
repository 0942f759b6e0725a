"""How KV memory is cut into pages and what it can hold."""

import sys
from typing import NamedTuple

import pytest

from sglang.srt.mem_cache.arena import ArenaShape
from sglang.srt.mem_cache.arena_size import arena_shape, token_bytes
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=2, suite="unit-test-cpu")


class Layer(NamedTuple):
    layer: int
    sliding: bool
    num_kv_heads: int
    head_dim: int


def model(layers: int, every: int, swa_heads: int, full_heads: int, full_dim: int = 512) -> list[Layer]:
    """Layers that own KV, each `every`-th a full one."""
    full, swa = (False, full_heads, full_dim), (True, swa_heads, 256)
    return [Layer(i, *(full if i % every == every - 1 else swa)) for i in range(layers)]


SMALL = [Layer(0, True, 2, 8), Layer(1, True, 2, 8), Layer(3, False, 1, 16)]  # layer 2 shares another layer's KV
A4B = model(30, 6, 8, 2)
MODELS = {"26b-a4b": A4B, "31b": model(60, 6, 16, 4), "12b": model(48, 6, 8, 1), "e2b": model(15, 5, 1, 1),
          "e4b": model(24, 6, 2, 2), "a4b on 2 ranks": model(30, 6, 4, 1), "small": SMALL}  # fmt: skip
ONE_LAYER = [Layer(0, False, 1, 64)]
HELD = 1024 + 128 + 2  # a request's sliding slots: the window, what waits to be trimmed, a step in flight
ONE_REQUEST = 1024 + HELD + 8192  # beside the locked window it started from, and a chunk


def shape(budget, layers=A4B, **changes) -> ArenaShape:
    args = dict(
        dtype_bytes=2,
        window=1024,
        max_running_requests=64,
        chunked_prefill_size=8192,
        swa_full_tokens_ratio=0.8,
        context_len=131072,
    )
    return arena_shape(int(budget), layers, **(args | changes))


@pytest.mark.parametrize("dtype_bytes", [1, 2, 4])
@pytest.mark.parametrize("layers", MODELS.values(), ids=MODELS.keys())
def test_pages_are_filled_by_both_kinds_and_use_the_budget_up(layers, dtype_bytes):
    full, swa = token_bytes(layers, dtype_bytes)
    for gib in (24, 40, 90):
        got = shape(gib << 30, layers, dtype_bytes=dtype_bytes)
        page = got.full_per_page * full
        assert page == got.swa_per_page * swa
        assert got.full_per_page % got.run == got.swa_per_page % got.run == 0 and got.run & (got.run - 1) == 0
        assert (gib << 30) - page < (got.num_pages + 1) * page <= gib << 30  # with the padding page
        assert got.run == 64 or got.num_pages < 512  # long runs wherever there are pages enough


def test_memory_that_no_kind_owns_holds_what_is_asked_of_it():
    """26B-A4B on an H200: 84 GB. All but one request's window can be full tokens, and a tenth of them sliding ones."""
    got = shape(84.2e9, context_len=262144)
    assert (got.full_per_page, got.swa_per_page, got.run) == (640, 64, 64)
    assert got.full_size > 4_000_000 and got.swa_size == got.num_pages * 64 > 400_000
    per_request = -(-110_000 // 640) + -(-(HELD + 64) // 64)
    assert got.num_pages // per_request >= 33  # of 110,000 tokens each


def test_ratio_bounds_sliding_tokens():
    free, bound = shape(80 << 30), shape(80 << 30, swa_full_tokens_ratio=0.01)
    assert bound.swa_size == int(0.01 * bound.full_size) < free.swa_size
    assert (bound.num_pages, bound.full_size) == (free.num_pages, free.full_size)


def test_low_ratio_still_leaves_room_for_one_request():
    got = shape(20 << 30, swa_full_tokens_ratio=0.001)
    assert ONE_REQUEST <= got.swa_size < ONE_REQUEST + 128


def test_short_contexts_need_no_whole_window():
    got = shape(4 << 30, max_running_requests=4, context_len=100, max_total_tokens=400)
    assert got.full_size == 400 and got.num_pages * got.full_per_page < 400 + 10 * (400 + 10) + 100
    with pytest.raises(ValueError):
        shape(4 << 20, context_len=10_000)
    assert shape(24 << 20, context_len=100).full_size >= 100


def test_max_total_tokens_sets_or_limits_full_tokens():
    for tokens in (50, 20000, 20001):
        got = shape(80 << 30, max_total_tokens=tokens)
        assert got.full_size == tokens and got.num_pages * got.full_per_page * 20480 < 40 << 30
    assert shape(4 << 30, max_total_tokens=10**9) == shape(4 << 30)
    assert shape(1 << 30, ONE_LAYER, max_total_tokens=77).full_size == 77


@pytest.mark.parametrize("layers", [*MODELS.values(), SMALL[1:]], ids=[*MODELS, "as large"])
@pytest.mark.parametrize("tokens", [1, 17, 100, 400, 3000, 5000, 65_536])
def test_whatever_total_is_asked_for_is_had(layers, tokens):
    """Also where the sliding part of one request is all the tokens, in pages that it does not fill."""
    for window, chunk in ((16, 512), (1024, 8192), (128, -1)):
        got = shape(
            60 << 30, layers, max_total_tokens=tokens, window=window, chunked_prefill_size=chunk, context_len=5000
        )
        assert got.full_size == tokens and got.swa_size >= min(tokens, 16)


def test_without_sliding_layers_all_is_full_tokens():
    got = shape(1 << 30, ONE_LAYER, window=None)
    assert got.full_size == got.num_pages * got.full_per_page == (1 << 30) // 256 - 64
    assert (got.swa_per_page, got.swa_size, got.run) == (0, 0, 64)


@pytest.mark.parametrize("budget", [-1, 0, 10**6, 10**9])
def test_a_budget_too_small_for_one_request_says_so(budget):
    with pytest.raises(ValueError, match=f"one request needs {ONE_REQUEST}: raise --mem-fraction-static"):
        shape(budget)
    with pytest.raises(ValueError, match="one request needs 8192"):
        shape(min(budget, 10**6), ONE_LAYER, window=None)


def test_small_total_needs_only_its_own_memory():
    pages = 5 + 50 + 1  # ten full or one sliding token each, and the padding
    assert shape(pages * 204800, max_total_tokens=50) == ArenaShape(55, 10, 1, 50, 50, 1)
    with pytest.raises(ValueError, match="holds 40 tokens at 20480 bytes each beside 50 sliding"):
        shape((pages - 1) * 204800, max_total_tokens=50)


def test_sliding_layers_alone_are_refused():
    with pytest.raises(ValueError, match="full-attention layer"):
        shape(1 << 30, [Layer(0, True, 1, 64)])
    with pytest.raises(ValueError, match="without a window"):
        shape(1 << 30, window=None)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
