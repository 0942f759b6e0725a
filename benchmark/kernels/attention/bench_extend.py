"""Which tile is fastest for prefill attention? Gemma 4 26B-A4B's layers over a grid of tiles. Needs a GPU.

    python benchmark/kernels/attention/bench_extend.py [--layer sliding] [--prompts 8] [--tokens 1024] [--cached 0]
        [--block-m 64 128] [--block-n 32 64] [--warps 8] [--stages 1 2 3]

Without any of the last four it tries the tiles in TILES. Each is first checked against the reference. Prints medians,
fastest first; the floor is 4 D flops for each visible (query, head, key) at 790 TFLOP/s, what a large matrix product
reaches on a Hopper GPU.
"""

import argparse

import torch
from harness import LAYERS, Layer, choose, make_case, make_cases, rotating

from sglang.srt.ops.attention.extend_attention import (
    extend_attention,
    extend_attention_reference,
    make_work,
    tokens_per_tile,
)
from sglang.srt.ops.attention.tiles import ExtendTile, extend_tile
from sglang.srt.utils.triton_runtime import triton
from sglang.test.kernel_timing import add_case, add_json_argument
from sglang.test.kernel_variants import usable

FLOPS = 790e12
TILES = {
    "sliding": [(64, 64, 8, 1), (128, 64, 8, 1), (64, 64, 8, 2), (64, 64, 8, 3), (64, 64, 4, 2), (128, 32, 8, 3)]
    + [(128, 64, 8, 2), (128, 64, 8, 3), (64, 128, 8, 1), (64, 32, 4, 3)],
    "full": [(32, 64, 8, 1), (64, 64, 8, 1), (64, 32, 8, 1), (64, 32, 8, 2), (64, 32, 8, 3), (64, 32, 4, 3)]
    + [(64, 16, 8, 5), (32, 32, 4, 1), (128, 32, 8, 1), (64, 32, 8, 4), (128, 16, 8, 3)],
}


def runner(layer: Layer, rows: list[tuple[int, int]], tile: ExtendTile):
    """A call that runs the kernel on a case of `rows`; the list of tiles is made once, as a step makes it for all
    layers."""
    tokens = tokens_per_tile(layer.num_heads // layer.kv_heads, tile)
    work = torch.from_numpy(make_work(*zip(*rows, strict=True), tokens)).cuda()

    def call(case) -> None:
        extend_attention(
            case.q,
            case.k_cache,
            case.v_cache,
            case.out,
            case.table,
            case.req_rows,
            case.cached,
            case.new,
            case.starts,
            work,
            tile,
            layer.scale,
            layer.window,
        )

    return call


def check(layer: Layer, tile: ExtendTile) -> float:
    """The largest error on a chunk after a prefix longer than the window, beside a short prompt."""
    rows = [(1500, 130), (0, 77)]
    case = make_case(layer, rows)
    runner(layer, rows, tile)(case)
    q, k_cache, v_cache = (x.float() for x in (case.q, case.k_cache, case.v_cache))
    want = extend_attention_reference(
        q, k_cache, v_cache, case.table, case.req_rows, case.cached, case.new, layer.scale, layer.window
    )
    return (case.out.float() - want).abs().max().nan_to_num(nan=float("inf")).item()


def visible_pairs(rows: list[tuple[int, int]], window: int | None) -> int:
    positions = (position for cached, new in rows for position in range(cached, cached + new))
    return sum(position + 1 if window is None else min(position + 1, window) for position in positions)


def tiles_to_compare(layer: Layer) -> tuple[ExtendTile, ExtendTile | None]:
    """The tile that a server takes, and the one with Hopper's own switched off, None if that is no other."""
    capability = torch.cuda.get_device_capability()
    has_switch = capability[0] == 9 and 128 < layer.dim <= 256
    return extend_tile(capability, layer.dim), extend_tile(capability, 128) if has_switch else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layer", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1024, help="new tokens of each prompt")
    parser.add_argument("--cached", type=int, default=0, help="tokens of each prompt that are in the cache")
    parser.add_argument("--block-m", type=int, nargs="+", help="rows of a tile: (token, query head) pairs")
    parser.add_argument("--block-n", type=int, nargs="+", help="keys of a tile")
    parser.add_argument("--warps", type=int, nargs="+")
    parser.add_argument("--stages", type=int, nargs="+")
    parser.add_argument("--jobs", type=int, default=8, help="variants compiled and checked at a time")
    add_json_argument(parser)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a GPU")
    rows = [(args.cached, args.tokens)] * args.prompts
    print(f"{torch.cuda.get_device_name()}, {args.prompts} x {args.tokens} tokens after {args.cached} cached ones")
    for name in args.layer:
        layer = LAYERS[name]
        chosen = choose(TILES[name], args.block_m, args.block_n, args.warps, args.stages)
        variants = usable(check, [(layer, ExtendTile(*tile)) for tile in chosen], args.jobs)
        flops = 4 * layer.dim * layer.num_heads * visible_pairs(rows, layer.window)
        cases = make_cases(layer, rows, 2 * sum(map(sum, rows)) * 2 * layer.kv_heads * layer.dim)
        times = []
        for _, tile in variants:
            call = rotating(runner(layer, rows, tile), cases)
            times.append((triton.testing.do_bench(call, return_mode="median"), tile))
        print(f"\n{name}: floor {flops / FLOPS * 1e3:.3f} ms\nblock m  n  warps stages      ms   TFLOP/s  x floor")
        for ms, t in sorted(times, key=lambda pair: pair[0]):
            print(
                f"{t.block_m:7} {t.block_n:3} {t.num_warps:5} {t.num_stages:6} {ms:8.3f} "
                f"{flops / ms / 1e9:8.0f} {ms / 1e3 * FLOPS / flops:8.2f}"
            )
        ms_of = {tile: ms for ms, tile in times}
        used, off = tiles_to_compare(layer)
        if used in ms_of:
            case = f"{name}, {args.prompts} x {args.tokens} tokens" + (f" after {args.cached}" if args.cached else "")
            off_us = ms_of[off] * 1e3 if off in ms_of else None
            add_case(args.json, "extend attention", case, ms_of[used] * 1e3, off_us, flops / FLOPS * 1e6)


if __name__ == "__main__":
    main()
