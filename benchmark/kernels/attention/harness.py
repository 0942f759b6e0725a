"""What the attention benchmarks share: Gemma 4 26B-A4B's two kinds of layers, paged inputs, checks, clocks."""

import itertools
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
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


def error_message(check: Callable[..., float], *args) -> str | None:
    """None if the kernel's error, which `check` returns, is that of bfloat16; else what is wrong with this variant."""
    sys.stdout = open(os.devnull, "w")  # the compiler prints whole programs where it fails
    try:
        error = check(*args)
    except Exception as failure:  # of any kind: it does not compile, is too large, or reads where it must not
        lines = [line for line in str(failure).splitlines() if line.strip()]
        return f"{type(failure).__name__}: {next((x for x in lines if 'fatal' in x), lines[0] if lines else '')[:160]}"
    return None if error < 0.02 else f"wrong: differs from the reference by {error}"


def usable(check: Callable[..., float], variants: list[tuple], jobs: int) -> list[tuple]:
    """The variants that compile and are right, a line printed for each other. Each is tried in a process of its own,
    `jobs` at a time: they compile side by side, and none can break the next one's device."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        messages = [pool.submit(error_message, check, *variant) for variant in variants]
        messages = [message.result() for message in messages]
    for variant, message in zip(variants, messages, strict=True):
        if message is not None:
            print(f"skipped {variant}: {message}")
    return [variant for variant, message in zip(variants, messages, strict=True) if message is None]
