"""Where the experts' time goes, a token count a row: each step, the whole op, torch's grouped products, the floor.

    python benchmark/kernels/fused_moe_triton/bench_fused_moe.py --model FOLDER

Medians in microseconds, each from a CUDA graph over several routings. A token count has a row for the tiles a server
would look up, and one for the default tiles if those differ. `up+act` and `fused` have the activation in the up kernel.
"""

import argparse
import dataclasses

import torch
from workload import Batch, Experts, add_arguments, shape_from

from sglang.srt.ops.moe.align import align
from sglang.srt.ops.moe.config import Tiles, default_tiles
from sglang.srt.ops.moe.fused_experts import fused_experts_reference
from sglang.srt.ops.moe.fused_moe import choose_tiles, fused_experts_triton, grouped_gemm
from sglang.srt.ops.moe.moe_sum import moe_sum
from sglang.srt.ops.norms.activation import gelu_tanh_and_mul
from sglang.srt.utils.triton_runtime import triton
from sglang.test.kernel_timing import add_case, add_json_argument, graph_us

COLUMNS = ["align", "up", "act", "down", "sum", "total", "up+act", "fused", "torch"]


def measure(experts: Experts, batch: Batch, tiles: tuple[Tiles, Tiles], replays: int) -> dict[str, float]:
    """Microseconds by column; torch's products only in bfloat16, elsewhere they wait for the host."""
    shape, x, h = batch.shape, batch.x, batch.h
    gate_up, down, weights = experts.gate_up, experts.down, batch.weights
    up_tiles, down_tiles = tiles
    plans = batch.plans(up_tiles.block_m)
    up_out = grouped_gemm(x, gate_up, plans[0], shape.topk, up_tiles)
    y = grouped_gemm(h, down, plans[0], 1, down_tiles)

    def up(plan, activation=None, out=up_out):
        return grouped_gemm(x, gate_up, plan, shape.topk, up_tiles, activation=activation, out=out)

    def op(ids, fuse):
        return fused_experts_triton(x, gate_up, down, weights, ids, tiles, fuse_activation=fuse)

    steps = {
        "align": [lambda ids=ids: align(ids, shape.num_experts, up_tiles.block_m) for ids in batch.ids],
        "up": [lambda plan=plan: up(plan) for plan in plans],
        "act": [lambda: gelu_tanh_and_mul(up_out)] * len(plans),
        "down": [lambda plan=plan: grouped_gemm(h, down, plan, 1, down_tiles, out=y) for plan in plans],
        "sum": [lambda: moe_sum(y.view(batch.tokens, shape.topk, shape.hidden), weights)] * len(plans),
        "total": [lambda ids=ids: op(ids, fuse=False) for ids in batch.ids],
        "up+act": [lambda plan=plan: up(plan, "gelu_tanh", torch.empty_like(h)) for plan in plans],
        "fused": [lambda ids=ids: op(ids, fuse=True) for ids in batch.ids],
    }
    if shape.dtype == torch.bfloat16:
        steps["torch"] = [lambda ids=ids: fused_experts_reference(x, gate_up, down, weights, ids) for ids in batch.ids]
    times = {}
    for name, calls in steps.items():
        try:
            times[name] = graph_us(calls, replays)
        except triton.runtime.errors.OutOfResources:  # two accumulators may not fit where one does
            continue
    return times


def row(name: str, tokens: int, times: dict[str, float], floor: float) -> str:
    cells = [f"{times[column]:.1f}" if column in times else "-" for column in COLUMNS]
    return table_row(str(tokens), name, *cells, f"{floor:.1f}", f"{floor / times['total']:.0%}")


def table_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--replays", type=int, default=30, help="timed replays of a step's graph (default 30)")
    add_json_argument(parser)
    args = parser.parse_args()
    shape = shape_from(args, parser)
    if not torch.cuda.is_available():
        parser.error("there is no GPU to time on")
    experts = Experts(shape)
    print(f"{torch.cuda.get_device_name()}, Triton {triton.__version__}, {dataclasses.asdict(shape)}\n")
    print(table_row("tokens", "tiles", *COLUMNS, "floor", "of floor"))
    print(table_row(*["---"] * (len(COLUMNS) + 4)))
    for tokens in args.batch_sizes:
        batch = Batch(shape, tokens)
        default = (default_tiles(tokens, shape.num_experts),) * 2
        looked_up = choose_tiles(batch.x, shape.num_experts, shape.intermediate)
        floor = shape.floor_us(tokens, args.bandwidth * 1e12, args.tflops * 1e12)
        chosen = {"default": default} | ({"file": looked_up} if looked_up != default else {})
        totals = {}
        for name, tiles in chosen.items():
            times = measure(experts, batch, tiles, args.replays)
            totals[name] = times["total"]
            print(row(name, tokens, times, floor), flush=True)
        used = totals.get("file", totals["default"])
        add_case(args.json, "fused experts", f"{tokens} tokens", used, totals["default"], floor)


if __name__ == "__main__":
    main()
