"""Times the router's kernels at 26B-A4B's shapes beside their floors (bytes read and written at 4.3 TB/s).

    python benchmark/kernels/bench_router.py [--kernels router-norm topk-softmax] [--tokens 1 8 26 64 1024 8192]

`apart` is what a server runs with SGLANG_DISABLE_FUSED_ROUTER_NORM=1 (the norm's kernel and two products) or
SGLANG_DISABLE_FUSED_TOPK_SOFTMAX=1 (the reference in torch's kernels). Inputs rotate over buffers larger than the L2
cache together, except where few tokens would need thousands of them. Needs a GPU.
"""

import argparse

import torch
from torch import Tensor

from sglang.srt.ops.moe import router_norm, topk
from sglang.srt.ops.norms import rms_norm
from sglang.test.kernel_timing import BANDWIDTH, add_case, add_json_argument, buffers, rotating_us

HIDDEN, EXPERTS, K, EPS = 2816, 128, 8, 1e-6
ROOT = HIDDEN**-0.5


def norm_apart(h: Tensor, scale: Tensor) -> Tensor:
    return rms_norm.launch(h, None, EPS) * scale * ROOT


def time_router_norm(tokens: int) -> tuple[float, float, int]:
    """Microseconds of the kernel and apart, bytes moved."""
    hs, scale = buffers(tokens, HIDDEN), torch.ones(HIDDEN, device="cuda", dtype=torch.bfloat16)
    return rotating_us(hs, router_norm.launch, scale, ROOT, EPS), rotating_us(hs, norm_apart, scale), 2 * hs[0].nbytes


def time_topk_softmax(tokens: int) -> tuple[float, float, int]:
    logits, scale = buffers(tokens, EXPERTS), torch.ones(EXPERTS, device="cuda", dtype=torch.bfloat16)
    ours, apart = (rotating_us(logits, f, K, scale) for f in (topk.launch, topk.topk_softmax_reference))
    return ours, apart, logits[0].nbytes + tokens * K * 12


TIMED = {"router-norm": time_router_norm, "topk-softmax": time_topk_softmax}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", nargs="+", choices=TIMED, default=[*TIMED])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 26, 64, 1024, 8192])
    add_json_argument(parser)
    args = parser.parse_args()
    print("| kernel | tokens | floor us | ours us | apart us |\n|---|---|---|---|---|")
    for kernel in args.kernels:
        for tokens in args.tokens:
            ours, apart, moved = TIMED[kernel](tokens)
            floor = moved / BANDWIDTH * 1e6
            print(f"| {kernel} | {tokens} | {floor:.2f} | {ours:.2f} | {apart:.2f} |", flush=True)
            add_case(args.json, kernel, f"{tokens} tokens", ours, apart, floor)


if __name__ == "__main__":
    main()
