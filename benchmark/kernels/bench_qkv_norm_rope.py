"""Times the kernel between the qkv product and attention at 26B-A4B's shapes: norms and rotation of q, k and v, K and V
written to the pool. Beside it its floor, bytes read and written at 4.3 TB/s.

    python benchmark/kernels/bench_qkv_norm_rope.py [--tokens 1 8 64 256 8192]

`apart` is what a server runs with SGLANG_DISABLE_FUSED_QKV_ROPE=1: norms, two rotations and two writes, five launches.
Inputs rotate over buffers larger than the L2 cache together, except where few tokens would need thousands of them.
Needs a GPU.
"""

import argparse

import torch
from torch import Tensor

from sglang.srt.ops.attention.kv_slots import KVSlots
from sglang.srt.ops.norms.qkv_norm_rope import launch
from sglang.srt.ops.norms.qkv_rms_norm import launch as launch_norms
from sglang.srt.ops.norms.qkv_rms_norm import takes_per_head
from sglang.srt.ops.norms.rope import launch_rope
from sglang.test.kernel_timing import BANDWIDTH, add_case, add_json_argument, buffers, rotating_us

HEADS, EPS = 16, 1e-6
KINDS = {"sliding": (256, 8, True), "full": (512, 2, False)}  # head size, KV heads, own v rows


def apart(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    num_heads: int,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    kv: KVSlots,
    per_head: bool,
) -> Tensor:
    q, k, v = launch_norms(qkv, q_weight, k_weight, num_heads, kv.k_buffer.shape[1], eps, per_head)
    kv.write(launch_rope(k, cos, sin), v)
    return launch_rope(q, cos, sin)


def time_kind(kind: str, tokens: int) -> tuple[float, float, float, int]:
    """Microseconds of the kernel, apart, and of the kernel's other launch; bytes moved."""
    width, kv_heads, has_v = KINDS[kind]
    inputs = buffers(tokens, (HEADS + kv_heads * (1 + has_v)) * width)
    q_weight, k_weight = (torch.ones(width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    cos, sin = (torch.rand(tokens, width, device="cuda").bfloat16() for _ in range(2))
    pool = torch.empty(2, 2 * tokens + 1, kv_heads, width, device="cuda", dtype=torch.bfloat16)
    kv = KVSlots(*pool, torch.randperm(2 * tokens, device="cuda")[:tokens] + 1)
    common = (q_weight, k_weight, HEADS, cos, sin, EPS, kv)
    chosen = takes_per_head(tokens)
    ours, other = (rotating_us(inputs, launch, *common, per_head) for per_head in (chosen, not chosen))
    written = tokens * (HEADS + 2 * kv_heads) * width * 2
    moved = inputs[0].nbytes + (cos.nbytes + sin.nbytes) // 2 + kv.slots.nbytes + written
    return ours, rotating_us(inputs, apart, *common, chosen), other, moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 64, 256, 8192])
    add_json_argument(parser)
    args = parser.parse_args()
    print("| kernel | tokens | floor us | ours us | apart us | the other launch us |\n|---|---|---|---|---|---|")
    for kind in KINDS:
        kernel = f"qkv norm and rope, {kind}"
        for tokens in args.tokens:
            ours, five, other, moved = time_kind(kind, tokens)
            floor = moved / BANDWIDTH * 1e6
            print(f"| {kernel} | {tokens} | {floor:.2f} | {ours:.2f} | {five:.2f} | {other:.2f} |", flush=True)
            add_case(args.json, kernel, f"{tokens} tokens", ours, five, floor)


if __name__ == "__main__":
    main()
