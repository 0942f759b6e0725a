"""How KV memory is cut into pages, and what it can hold. Host arithmetic."""

import math
from typing import TYPE_CHECKING

from sglang.srt.mem_cache.arena import ArenaShape

if TYPE_CHECKING:
    from sglang.srt.configs.kv_layers import KVLayerSpec

# Sliding slots a running request holds beyond its window: a trim waits for up to 128 tokens (fewer where the window is
# smaller), and a step in flight adds a token or two before it.
TRIM_MARGIN = 128
IN_FLIGHT_MARGIN = 2
LONGEST_RUN = 64  # slots side by side; kernels that copy keys in bulk gain nothing from more
LEAST_PAGES = 256  # shorter runs before fewer pages: what one request leaves of its last page is no other kind's


def token_bytes(kv_layers: "list[KVLayerSpec]", dtype_bytes: int) -> tuple[int, int]:
    """Bytes of K and V of one token in all full and in all sliding layers."""
    full = sum(2 * s.num_kv_heads * s.head_dim * dtype_bytes for s in kv_layers if not s.sliding)
    swa = sum(2 * s.num_kv_heads * s.head_dim * dtype_bytes for s in kv_layers if s.sliding)
    return full, swa


def arena_shape(
    budget_bytes: int,
    kv_layers: "list[KVLayerSpec]",
    dtype_bytes: int,
    window: int | None,
    max_running_requests: int,
    chunked_prefill_size: int,
    swa_full_tokens_ratio: float,
    context_len: int,
    max_total_tokens: int | None = None,
    decode_tokens: int = 1,
) -> ArenaShape:
    """Pages that fit `budget_bytes` with the padding page, and how many slots of each kind there may be.

    A page is the least memory that whole runs of both kinds fill without rest, so that slot numbers of either kind go
    through the whole arena at equal distances. `full_size` is the longest context that leaves room for its sliding
    slots, or `max_total_tokens` if that is less: then the arena is no larger than those and the sliding slots of
    `max_running_requests` need. Sliding slots are bounded by `swa_full_tokens_ratio` times `full_size`, but for those
    of one request, and by the pages. `decode_tokens`: slots a decode step takes for a request until it knows which of
    them it keeps. Raises ValueError when the budget does not hold one request's window and chunk.
    """
    full_bytes, swa_bytes = token_bytes(kv_layers, dtype_bytes)
    if full_bytes == 0:
        raise ValueError("a model needs at least one full-attention layer: its slots count a request's tokens")
    if swa_bytes and window is None:
        raise ValueError("sliding layers without a window")
    context_len += decode_tokens - 1
    chunk = min(chunked_prefill_size, context_len) if chunked_prefill_size > 0 else context_len
    one_request = demand = 0
    if swa_bytes:
        held = min(context_len, window + min(TRIM_MARGIN, window) + IN_FLIGHT_MARGIN + decode_tokens - 1)
        # Beside its own window a request keeps the cached one it started from locked, until it has moved past that.
        one_request = min(context_len, window + held + chunk)
        demand = max(one_request, max_running_requests * 2 * held + max(chunk, chunked_prefill_size))

    most = context_len if max_total_tokens is None else min(context_len, max_total_tokens)
    least_swa = min(one_request, most)
    run = LONGEST_RUN
    while True:
        page_bytes = _page_bytes(full_bytes, swa_bytes, run)
        full_per_page, swa_per_page = page_bytes // full_bytes, page_bytes // swa_bytes if swa_bytes else 0
        pages = budget_bytes // page_bytes - 1  # less the padding page
        # A window moves on through its pages, so it may begin and end inside one.
        swa_pages = -(-(least_swa + swa_per_page - 1) // swa_per_page) if least_swa else 0
        if max_total_tokens is not None:
            wanted = -(-min(max_total_tokens, demand) // swa_per_page) if swa_per_page else 0
            pages = min(pages, -(-max_total_tokens // full_per_page) + max(swa_pages, wanted))
        if pages >= LEAST_PAGES or run == 1:
            break
        run //= 2

    full_size = (pages - swa_pages) * full_per_page
    if max_total_tokens is not None:
        full_size = min(full_size, max_total_tokens)
    least = min(most, one_request if swa_bytes else chunk)
    if full_size < least:
        detail = f" beside {least_swa} sliding tokens (window {window}, chunk {chunk})" if swa_bytes else ""
        raise ValueError(
            f"KV memory of {max(0, budget_bytes) / 2**20:.1f} MiB holds {max(0, full_size)} tokens at {full_bytes} "
            f"bytes each{detail}, but one request needs {least}: raise --mem-fraction-static or lower "
            f"--chunked-prefill-size or --context-length"
        )
    swa_size = min(pages * swa_per_page, max(swa_pages * swa_per_page, int(swa_full_tokens_ratio * full_size)))
    return ArenaShape(pages, full_per_page, swa_per_page, full_size, swa_size, run)


def _page_bytes(full_bytes: int, swa_bytes: int, run: int) -> int:
    """The least memory that whole runs of both kinds fill."""
    return math.lcm(full_bytes * run, swa_bytes * run) if swa_bytes else full_bytes * run
