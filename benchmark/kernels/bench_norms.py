"""Times the norm and rotation kernels at 26B-A4B's shapes beside their floors (bytes read and written at 4.3 TB/s).

    python benchmark/kernels/bench_norms.py [--tokens 1 8 64 256 257 1024 8192]

`eager` is the same in torch's own kernels. Inputs rotate over buffers larger than the L2 cache together, except where
few tokens would need thousands of them. Needs a GPU.
"""

import argparse

import torch

from sglang.srt.ops.norms.qkv_rms_norm import launch as launch_qkv
from sglang.srt.ops.norms.qkv_rms_norm import qkv_rms_norm_reference, takes_per_head
from sglang.srt.ops.norms.rms_norm import launch, rms_norm_reference
from sglang.srt.ops.norms.rope import apply_rope_reference, launch_rope
from sglang.test.kernel_timing import BANDWIDTH, add_case, add_json_argument, buffers, rotating_us

HIDDEN, HEADS, EPS = 2816, 16, 1e-6
KINDS = {"sliding": (256, 8, True), "full": (512, 2, False)}  # head size, KV heads, own v rows


def row(name: str, tokens: int, bytes_moved: int, ours: float, eager: float, other: str = "") -> None:
    floor = bytes_moved / BANDWIDTH * 1e6
    print(f"| {name} | {tokens} | {floor:.2f} | {ours:.2f} | {eager:.2f} | {other} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 64, 256, 257, 1024, 8192])
    add_json_argument(parser)
    args = parser.parse_args()
    print("| kernel | tokens | floor us | ours us | eager us | the other launch us |\n|---|---|---|---|---|---|")
    weight = torch.ones(HIDDEN, device="cuda", dtype=torch.bfloat16)
    for tokens in args.tokens:
        xs = buffers(tokens, HIDDEN)
        ours, eager = (rotating_us(xs, f, weight, EPS) for f in (launch, rms_norm_reference))
        row("rms_norm", tokens, xs[0].nbytes * 2, ours, eager)
    for kind, (width, kv_heads, has_v) in KINDS.items():
        q_weight, k_weight = (torch.ones(width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        heads = HEADS + kv_heads * (1 + has_v)
        common = (q_weight, k_weight, HEADS, kv_heads, EPS)
        for tokens in args.tokens:
            xs = buffers(tokens, heads * width)
            written = tokens * (HEADS + 2 * kv_heads) * width * 2
            chosen = takes_per_head(tokens)
            ours, other = (rotating_us(xs, launch_qkv, *common, per_head=per_head) for per_head in (chosen, not chosen))
            eager = rotating_us(xs, qkv_rms_norm_reference, *common, rms_norm_reference)
            row(f"qkv norm, {kind}", tokens, xs[0].nbytes + written, ours, eager, f"{other:.2f}")
            floor = (xs[0].nbytes + written) / BANDWIDTH * 1e6
            add_case(args.json, f"qkv norm, {kind}", f"{tokens} tokens", ours, other if chosen else None, floor)
        for tokens in args.tokens:
            xs = [x.view(tokens, HEADS, width) for x in buffers(tokens, HEADS * width)]
            cos, sin = (torch.rand(tokens, width, device="cuda").bfloat16() for _ in range(2))
            ours, eager = (rotating_us(xs, f, cos, sin) for f in (launch_rope, apply_rope_reference))
            row(f"rotation of q, {kind}", tokens, xs[0].nbytes * 2 + cos.nbytes + sin.nbytes, ours, eager)


if __name__ == "__main__":
    main()
