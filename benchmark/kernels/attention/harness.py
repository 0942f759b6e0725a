"""What the attention benchmarks share: Gemma 4 26B-A4B's two kinds of layers, paged inputs, clocks."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch

L2_BYTES = 60e6  # of an H200, rounded up


@dataclass(frozen=True)
class Layer:
    num_heads: int
    kv_heads: int
    dim: int
    window: int | None
    scale: float = 1.0  # Gemma 4's; q and k come from RMS norms


LAYERS = {"sliding": Layer(16, 8, 256, 1024), "full": Layer(16, 2, 512, None)}


def make_case(layer: Layer, rows: list[tuple[int, int]]) -> SimpleNamespace:
    """Inputs in bfloat16 for requests of (cached, new) tokens; their slots are scattered over the pool."""
    cached, new = (torch.tensor(x, device="cuda") for x in zip(*rows, strict=True))
    longest, slots = max(map(sum, rows)), sum(map(sum, rows))
    table = torch.zeros(len(rows), longest, dtype=torch.int32, device="cuda")
    order = torch.randperm(slots, device="cuda", dtype=torch.int32) + 1
    for row, taken in enumerate(order.split([sum(row) for row in rows])):
        table[row, : len(taken)] = taken

    def random(*shape: int) -> torch.Tensor:  # of unit length, as scores are not scaled down
        x = torch.randn(*shape, device="cuda")
        return (x / x.norm(dim=-1, keepdim=True) * 4).to(torch.bfloat16)

    q = random(int(new.sum()), layer.num_heads, layer.dim)
    return SimpleNamespace(
        q=q,
        k_cache=random(slots + 1, layer.kv_heads, layer.dim),
        v_cache=random(slots + 1, layer.kv_heads, layer.dim),
        out=torch.empty_like(q),
        table=table,
        req_rows=torch.arange(len(rows), device="cuda"),
        cached=cached,
        new=new,
        starts=new.cumsum(0) - new,
        lengths=cached + new,
    )


def make_cases(layer: Layer, rows: list[tuple[int, int]], cache_bytes: float) -> list[SimpleNamespace]:
    """Enough sets of inputs, of `cache_bytes` keys and values each, that none is still in L2 when its turn comes.

    They are complete on return: what is timed may run on another stream."""
    cases = [make_case(layer, rows) for _ in range(max(2, int(4 * L2_BYTES / cache_bytes)))]
    torch.cuda.synchronize()
    return cases


def choose(tiles: list[tuple], *given: list[int] | None) -> list[tuple]:
    """`tiles`, or where some numbers were given the grid of them; for the others the first tile's."""
    if not any(given):
        return tiles
    return list(itertools.product(*(numbers or [first] for numbers, first in zip(given, tiles[0], strict=True))))


def rotating(call: Callable[[SimpleNamespace], None], cases: list[SimpleNamespace]) -> Callable[[], None]:
    turn = itertools.cycle(cases)
    return lambda: call(next(turn))
