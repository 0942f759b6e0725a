"""The optimizations that can be switched off, as data: what PR #26588 kept, and later ones. A new one is a new row."""

from dataclasses import dataclass, field

KERNELS = "benchmark/kernels"
MODEL = "benchmark/gemma4/configs/26b-a4b"


@dataclass(frozen=True)
class Optimization:
    """`env` switches it off. `bench` is a kernel benchmark with its arguments, relative to the repository: it takes
    `--json FILE` and writes a line a case with the times with and without the switch; `case` is the one to quote."""

    name: str
    env: dict[str, str] = field(hash=False)
    bench: tuple[str, ...] = ()
    kernel: str = ""  # of the benchmark's lines
    case: str = ""


OPTIMIZATIONS = [
    Optimization(
        "tuned expert tiles",
        {"SGLANG_DISABLE_MOE_CONFIGS": "1"},
        (
            f"{KERNELS}/fused_moe_triton/bench_fused_moe.py",
            "--model",
            MODEL,
            "--batch-sizes",
            "1",
            "8",
            "32",
            "64",
        ),
        kernel="fused experts",
        case="32 tokens",
    ),
    Optimization(
        "Hopper prefill tiles",
        {"SGLANG_DISABLE_HOPPER_EXTEND_TILES": "1"},
        (f"{KERNELS}/attention/bench_extend.py", "--layer", "sliding"),
        kernel="extend attention",
        case="sliding, 8 x 1024 tokens",
    ),
    Optimization(
        "q, k, v norms by head",
        {"SGLANG_DISABLE_QKV_NORM_PER_HEAD": "1"},
        (f"{KERNELS}/bench_norms.py", "--tokens", "1", "8", "64", "256"),
        kernel="qkv norm, sliding",
        case="64 tokens",
    ),
    Optimization(
        "fused router norm",
        {"SGLANG_DISABLE_FUSED_ROUTER_NORM": "1"},
        (f"{KERNELS}/bench_router.py", "--kernels", "router-norm", "--tokens", "1", "8", "26", "64"),
        kernel="router-norm",
        case="26 tokens",
    ),
    Optimization(
        "fused expert choice",
        {"SGLANG_DISABLE_FUSED_TOPK_SOFTMAX": "1"},
        (f"{KERNELS}/bench_router.py", "--kernels", "topk-softmax", "--tokens", "1", "8", "26", "64"),
        kernel="topk-softmax",
        case="26 tokens",
    ),
    Optimization(
        "fused q, k, v norms, rope and KV write",
        {"SGLANG_DISABLE_FUSED_QKV_ROPE": "1"},
        (f"{KERNELS}/bench_qkv_norm_rope.py", "--tokens", "1", "8", "64", "256", "8192"),
        kernel="qkv norm and rope, sliding",
        case="8 tokens",
    ),
    Optimization(
        "fused residual norms",
        {"SGLANG_DISABLE_FUSED_RESIDUAL_NORMS": "1"},
        (f"{KERNELS}/bench_residual_norms.py", "--tokens", "1", "8", "26", "64"),
        kernel="residual norms, layer-end",
        case="26 tokens",
    ),
    Optimization("dense MLP beside the experts", {"SGLANG_DISABLE_SIDE_STREAM": "1"}),
    Optimization("dependent launch", {"SGLANG_DISABLE_DEPENDENT_LAUNCH": "1"}),
]
KEPT_BY_PULL_REQUEST = OPTIMIZATIONS[:3]  # what PR #26588 kept
ALL_ON, ALL_OFF, PULL_REQUEST_OFF = "all on", "all off", "PR's three off"
TOGETHER = {"without both router fusions": OPTIMIZATIONS[3:5], ALL_OFF: OPTIMIZATIONS}  # off at once


def switched_off(optimizations: list[Optimization]) -> dict[str, str]:
    """The environment that switches them off."""
    return {name: value for optimization in optimizations for name, value in optimization.env.items()}
