"""How many tokens each KV pool gets. Host arithmetic."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.configs.kv_layers import KVLayerSpec

# Sliding slots a running request holds beyond its window: a trim waits for up to 128 tokens (fewer where the window is
# smaller), and a step in flight adds a token or two before it.
TRIM_MARGIN = 128
IN_FLIGHT_MARGIN = 2


def token_bytes(kv_layers: "list[KVLayerSpec]", dtype_bytes: int) -> tuple[int, int]:
    """Bytes of K and V that one token takes in the full and in the sliding pool."""
    full = sum(2 * s.num_kv_heads * s.head_dim * dtype_bytes for s in kv_layers if not s.sliding)
    swa = sum(2 * s.num_kv_heads * s.head_dim * dtype_bytes for s in kv_layers if s.sliding)
    return full, swa


def pool_sizes(
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
) -> tuple[int, int]:
    """Tokens of the full and of the sliding pool that fit `budget_bytes`; the second is 0 without sliding layers.

    The sliding pool gets what it can use: for each running request a window with its margin, as much again for windows
    kept by the prefix cache, and one prefill chunk (`chunked_prefill_size` < 1: a whole context). It is bounded above
    by `swa_full_tokens_ratio` x the full pool and below by what one request needs. All other memory is full tokens.
    `max_total_tokens` sets the full pool, or limits it where the budget holds less. `decode_tokens`: slots a decode
    step takes for a request until it knows which of them it keeps.
    Raises ValueError when the budget does not hold one request's window and chunk.
    """
    full_bytes, swa_bytes = token_bytes(kv_layers, dtype_bytes)
    if full_bytes == 0:
        raise ValueError("a model needs at least one full-attention layer: the full pool counts its tokens")
    context_len += decode_tokens - 1
    chunk = min(chunked_prefill_size, context_len) if chunked_prefill_size > 0 else context_len
    if swa_bytes == 0:
        full = budget_bytes // full_bytes
        _check_fits(full, min(context_len, chunk), budget_bytes, full_bytes, "")
        return (full if max_total_tokens is None else min(full, max_total_tokens)), 0
    if window is None:
        raise ValueError("sliding layers without a window")

    held = min(context_len, window + min(TRIM_MARGIN, window) + IN_FLIGHT_MARGIN + decode_tokens - 1)
    # Beside its own window a request keeps the cached one it started from locked, until it has moved past that.
    one_request = min(context_len, window + held + chunk)
    demand = max(one_request, max_running_requests * 2 * held + max(chunk, chunked_prefill_size))

    def swa_for(full: int) -> int:
        """A token has a sliding slot only beside a full one, hence never more of them than `full`."""
        return min(full, max(one_request, min(demand, int(swa_full_tokens_ratio * full))))

    # swa_for is min and max of lines in `full`, so the memory for (full, swa_for(full)) grows with `full`: bisect.
    low, high = 0, budget_bytes // full_bytes
    if max_total_tokens is not None:
        high = min(high, max_total_tokens)
    while low < high:
        full = (low + high + 1) // 2
        if full * full_bytes + swa_for(full) * swa_bytes <= budget_bytes:
            low = full
        else:
            high = full - 1
    wanted = one_request if max_total_tokens is None else min(one_request, max_total_tokens)
    _check_fits(low, wanted, budget_bytes, full_bytes + swa_bytes, f" (window {window}, chunk {chunk})")
    return low, swa_for(low)


def _check_fits(tokens: int, needed: int, budget_bytes: int, bytes_per_token: int, detail: str) -> None:
    if tokens < needed:
        raise ValueError(
            f"KV memory of {max(0, budget_bytes) / 2**20:.1f} MiB holds {max(0, tokens)} tokens at {bytes_per_token} "
            f"bytes each, but one request needs {needed}{detail}: raise --mem-fraction-static or lower "
            f"--chunked-prefill-size or --context-length"
        )
