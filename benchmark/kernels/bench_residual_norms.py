"""Times the residual stream's kernels at 26B-A4B's shapes beside their floors (bytes read and written at 4.3 TB/s).

    python benchmark/kernels/bench_residual_norms.py [--kernels after-attention layer-end dense] [--tokens 1 8 64 8192]

`apart` is what a server runs with SGLANG_DISABLE_FUSED_RESIDUAL_NORMS=1: a launch a norm, sum and product, the router's
norm in one. `after-attention` and `layer-end` are a MoE layer's two launches, `dense` is the one that a dense layer has
twice. Inputs rotate over buffers larger than the L2 cache together, except where few tokens would need thousands of
them; weights stay in it. Needs a GPU.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sglang.srt.ops.moe import router_norm
from sglang.srt.ops.norms.residual_norms import (
    ExpertSum,
    LayerEnd,
    MoeReaders,
    add_norm_reference,
    launch_add_norm,
    launch_add_norm_moe,
)
from sglang.srt.ops.norms.rms_norm import launch
from sglang.test.kernel_timing import BANDWIDTH, add_case, add_json_argument, buffers, rotating_us

HIDDEN, EPS = 2816, 1e-6
ROOT = HIDDEN**-0.5


def micros(inputs: list[Tensor], run: Callable) -> float:
    """Of `run(h, m, y)`, an input's three rows a token."""
    return rotating_us([x.unbind() for x in inputs], lambda rows: run(*rows))


def time_after_attention(tokens: int, weight: Tensor) -> tuple[float, float, int]:
    """Microseconds of the kernel and apart, rows read and written."""

    def ours(h: Tensor, a: Tensor, _: Tensor) -> None:
        launch_add_norm_moe(h, a, weight, MoeReaders(weight, weight, weight, ROOT), EPS)

    def apart(h: Tensor, a: Tensor, _: Tensor) -> None:
        h, _ = add_norm_reference(h, a, weight, EPS, end=LayerEnd(next_norm=weight), norm=launch)
        launch(h, weight, EPS)
        router_norm.launch(h, weight, ROOT, EPS)

    inputs = buffers(3, tokens, HIDDEN)
    return micros(inputs, ours), micros(inputs, apart), 6


def time_layer_end(tokens: int, weight: Tensor) -> tuple[float, float, int]:
    scalar = weight[:1].clone()

    def run(function: Callable, h: Tensor, m: Tensor, y: Tensor) -> None:
        function(h, m, weight, EPS, ExpertSum(y, weight, weight), LayerEnd(scalar, weight))

    inputs = buffers(3, tokens, HIDDEN)
    ours, apart = (micros(inputs, partial(run, f)) for f in (launch_add_norm, partial(add_norm_reference, norm=launch)))
    return ours, apart, 5


def time_dense(tokens: int, weight: Tensor) -> tuple[float, float, int]:
    scalar = weight[:1].clone()

    def run(function: Callable, h: Tensor, m: Tensor, _: Tensor) -> None:
        function(h, m, weight, EPS, None, LayerEnd(scalar, weight))

    inputs = buffers(3, tokens, HIDDEN)
    ours, apart = (micros(inputs, partial(run, f)) for f in (launch_add_norm, partial(add_norm_reference, norm=launch)))
    return ours, apart, 4


TIMED = {"after-attention": time_after_attention, "layer-end": time_layer_end, "dense": time_dense}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", nargs="+", choices=TIMED, default=[*TIMED])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 26, 64, 1024, 8192])
    add_json_argument(parser)
    args = parser.parse_args()
    weight = torch.ones(HIDDEN, device="cuda", dtype=torch.bfloat16)
    print("| kernel | tokens | floor us | ours us | apart us |\n|---|---|---|---|---|")
    for kernel in args.kernels:
        for tokens in args.tokens:
            ours, apart, rows = TIMED[kernel](tokens, weight)
            floor = rows * tokens * HIDDEN * 2 / BANDWIDTH * 1e6
            print(f"| {kernel} | {tokens} | {floor:.2f} | {ours:.2f} | {apart:.2f} |", flush=True)
            add_case(args.json, f"residual norms, {kernel}", f"{tokens} tokens", ours, apart, floor)


if __name__ == "__main__":
    main()
