"""Which tile and how many splits are fastest for decode attention? Gemma 4 26B-A4B's layers. Needs a GPU.

    python benchmark/kernels/attention/bench_decode.py [--layer full] [--batch 1 8 26 64] [--context 1152]
        [--block-n 16 32] [--warps 4] [--stages 2 5] [--splits 1 4 | --key-blocks]

Without any of --block-n, --warps and --stages it tries the tiles in TILES; without --splits the number the backend
takes. With --key-blocks keys are cut as in batch-invariant mode, for one program and for one a block. Each tile is
first checked against the reference. Times are medians over replays of a CUDA graph, both kernels together, fastest
first; the floor is K and V of the visible keys read once at 4.3 TB/s, what a copy reaches on an H200.
"""

import argparse

import torch
from harness import LAYERS, Layer, choose, make_case, make_cases, rotating

from sglang.srt.ops.attention.decode_attention import decode_attention, decode_attention_reference, num_splits
from sglang.srt.ops.attention.key_blocks import NO_KEY_BLOCKS, KeyBlocks, key_blocks_for, max_key_blocks
from sglang.srt.ops.attention.tiles import DecodeTile
from sglang.srt.utils.triton_runtime import triton
from sglang.test.kernel_variants import usable

BYTES_PER_SECOND = 4.3e12
TILES = {
    "sliding": [(32, 4, 5), (32, 4, 3), (32, 4, 2), (16, 4, 5), (64, 4, 2), (64, 4, 3), (64, 4, 5), (32, 8, 5)],
    "full": [(16, 4, 5), (16, 4, 3), (32, 4, 2), (32, 4, 3), (32, 8, 2), (32, 8, 5), (16, 8, 5), (64, 8, 1)],
}


def runner(layer: Layer, batch: int, splits: int, tile: DecodeTile, key_blocks: KeyBlocks = NO_KEY_BLOCKS):
    """A call that runs both kernels on a case of `batch` requests."""
    scratch = torch.empty(batch * layer.num_heads * splits * (layer.dim + 2), device="cuda")

    def call(case) -> None:
        decode_attention(
            case.q,
            case.k_cache,
            case.v_cache,
            case.out,
            case.table,
            case.req_rows,
            case.lengths,
            scratch,
            splits,
            tile,
            layer.scale,
            layer.window,
            key_blocks=key_blocks,
        )

    return call


def check(layer: Layer, tile: DecodeTile, key_blocks: KeyBlocks = NO_KEY_BLOCKS) -> float:
    """The largest error over one and several splits of a long, a short and a one-token request."""
    case, errors = make_case(layer, [(1500, 1), (70, 1), (0, 1)]), []
    for splits in (1, max_key_blocks(key_blocks, layer.window or 1501) if key_blocks.length else 8):
        runner(layer, 3, splits, tile, key_blocks)(case)
        q, k_cache, v_cache = (x.float() for x in (case.q, case.k_cache, case.v_cache))
        want = decode_attention_reference(
            q, k_cache, v_cache, case.table, case.req_rows, case.lengths, layer.scale, layer.window
        )
        errors.append((case.out.float() - want).abs().max().nan_to_num(nan=float("inf")).item())
    return max(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layer", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 26, 64])
    parser.add_argument("--context", type=int, default=1152, help="tokens of each request, the new one included")
    parser.add_argument("--block-n", type=int, nargs="+", help="keys of a tile")
    parser.add_argument("--warps", type=int, nargs="+")
    parser.add_argument("--stages", type=int, nargs="+")
    cut = parser.add_mutually_exclusive_group()
    cut.add_argument("--splits", type=int, nargs="+", help="parts of a request's keys; default: the backend's number")
    cut.add_argument("--key-blocks", action="store_true", help="at fixed places instead")
    parser.add_argument("--jobs", type=int, default=8, help="variants compiled and checked at a time")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a GPU")
    sm_count = torch.cuda.get_device_properties(0).multi_processor_count
    print(f"{torch.cuda.get_device_name()}, {args.context} tokens of context")
    for name in args.layer:
        layer = LAYERS[name]
        key_blocks = key_blocks_for(layer.window) if args.key_blocks else NO_KEY_BLOCKS
        most = max_key_blocks(key_blocks, layer.window or args.context) if args.key_blocks else 0
        chosen = choose(TILES[name], args.block_n, args.warps, args.stages)
        variants = usable(check, [(layer, DecodeTile(*tile), key_blocks) for tile in chosen], args.jobs)
        keys = args.context if layer.window is None else min(args.context, layer.window)
        for batch in args.batch:
            floor = batch * keys * 2 * layer.kv_heads * layer.dim * 2 / BYTES_PER_SECOND * 1e3
            rows = [(args.context - 1, 1)] * batch
            cases = make_cases(layer, rows, batch * keys * 2 * layer.kv_heads * layer.dim * 2)
            times = []
            tried = [1, most] if args.key_blocks else args.splits or [num_splits(batch, layer.kv_heads, sm_count)]
            for splits in tried:
                for _, tile, _ in variants:
                    call = rotating(runner(layer, batch, splits, tile, key_blocks), cases)
                    ms = triton.testing.do_bench_cudagraph(call, return_mode="median")
                    times.append((ms, splits, tile))
            print(f"\n{name}, batch {batch}: floor {floor:.4f} ms\nsplits block n  warps stages      ms  x floor")
            for ms, splits, t in sorted(times, key=lambda entry: entry[0]):
                print(f"{splits:6} {t.block_n:7} {t.num_warps:6} {t.num_stages:6} {ms:8.4f} {ms / floor:8.2f}")


if __name__ == "__main__":
    main()
