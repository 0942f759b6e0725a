"""Kernels that may start early wait before they read what others make, and give the bits they give otherwise."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch

from sglang.srt.ops.attention import decode_attention, extend_attention
from sglang.srt.ops.moe import align, config, fused_moe, moe_sum, topk
from sglang.srt.ops.norms import activation, qkv_norm_rope, residual_norms, rms_norm
from sglang.srt.ops.products import matmul
from sglang.srt.utils import dependent_launch
from sglang.srt.utils.dependent_launch import launch_options
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci
from sglang.test.triton_compile import compile_kernel

register_cpu_ci(est_time=10, suite="base-a-test-cpu")
register_cuda_ci(est_time=20, stage="base-b", runner_config="1-gpu-large")

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 9
NORM = {"WIDTH": 2816, "LEVELS": 12}
ATTENTION = {
    "D": 256, "DV": 256, "BLOCK_D": 256, "BLOCK_DV": 256, "BLOCK_N": 32, "GROUP": 2, "HEADS": 2, "KEY_BLOCK": 0,
    "GROWING": False,
}  # fmt: skip
TILE = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP_M": 1, "EVEN_K": True}
KERNELS = {  # and their constants
    rms_norm._rms_norm_kernel: NORM | {"HAS_WEIGHT": True},
    residual_norms._add_norm_kernel: NORM | {"HAS_EXPERTS": True, "HAS_SCALAR": True, "HAS_NEXT": True},
    residual_norms._add_norm_moe_kernel: NORM | {"HAS_ROUTER": True},
    qkv_norm_rope._qkv_norm_rope_kernel: {
        "NUM_HEADS": 16, "NUM_KV_HEADS": 8, "V_FROM_K": False, "LEVELS": 7, "HEADS": 32, "PER_HEAD": True,
    },
    activation._gated_kernel: {"ACTIVATION": "gelu_tanh", "CUDA_MATH": True, "BLOCK": 1024},
    topk._topk_softmax_kernel: {"EXPERTS": 128, "LEVELS": 7, "K": 8, "SLOT_LEVELS": 3},
    align._count_kernel: {"BINS": 128, "SEGMENT": 1024},
    align._place_kernel: {"BLOCK_M": 16, "BINS": 128, "SEGMENT": 128, "SEGMENT_ROWS": 1},
    moe_sum._sum_kernel: {"K": 8, "BLOCK": 1024},
    fused_moe._grouped_gemm_kernel: TILE | {"ACTIVATION": None, "CUDA_MATH": True},
    matmul._matmul_kernel: TILE | {"bias_ptr": None, "WEIGHT_FIRST": True},
    decode_attention._decode_kernel: ATTENTION | {
        "HEAD_BLOCKS": 1, "BLOCK_M": 16, "ONE_SPLIT": False, "PATH": False,
    },
    decode_attention._combine_kernel: {"DV": 256, "BLOCK_DV": 128, "BLOCK_N": 32, "MAX_SPLITS": 64},
    decode_attention._merge_kernel: {"DV": 256, "BLOCK_DV": 256, "KEY_BLOCK": 256, "GROWING": False},
    extend_attention._extend_kernel: ATTENTION | {
        "BLOCK_M": 64, "WINDOWED": True, "TREE": False,
        "tree_positions": None, "tree_visible": None, "tree_starts": None,
    },
}  # fmt: skip
WEIGHTS_FIRST = {residual_norms._add_norm_kernel, residual_norms._add_norm_moe_kernel}  # read before they wait
KINDS = {
    "*i64": "ids_ptr ids slots req_rows seq_lens prefix_lens new_lens start_locs",
    "*i32": "table path_slots work pairs_ptr experts_ptr used_ptr counts_ptr",
    "*fp32": "sums lses states weights weights_ptr",
    "fp32": "eps root scale",
    "i32": "elements width num_pairs num_segments pairs_per_row hidden M N K window splits nodes stride_x stride_a "
    "logits_stride qkv_stride slot_stride table_stride path_stride q_token_stride q_head_stride k_slot_stride "
    "k_head_stride v_slot_stride v_head_stride out_token_stride",
}
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names.split()}


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_a_kernel_waits_before_it_reads_or_writes(kernel):
    constants = KERNELS[kernel] | {"DEPENDENT": True}
    signature = {name: KIND_OF.get(name, "*bf16") for name in kernel.arg_names if name not in constants}
    ptx = compile_kernel(kernel, 90, signature, constants).asm["ptx"]
    assert ptx.count("griddepcontrol.wait") == ptx.count("griddepcontrol.launch_dependents") == 1
    before, after = ptx.split("griddepcontrol.wait")
    access = r"\b(?:ld\.global|st\.global|cp\.async\.c|atom\.|red\.)"
    assert re.search(access, after)
    assert "bra" not in before, "some programs leave without having waited"
    assert bool(re.search(access, before)) == (kernel in WEIGHTS_FIRST)
    assert not re.search(r"\bst\.global|cp\.async", before)


@pytest.mark.parametrize("major", [8, 9, 10])
def test_from_hopper_on(major, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    monkeypatch.setattr(dependent_launch, "DISABLED", False)
    options = launch_options.__wrapped__
    assert options(torch.device("cuda:0")) == (
        {"DEPENDENT": True, "launch_pdl": True} if major >= 9 else {"DEPENDENT": False}
    )
    assert options(torch.device("cpu")) == {"DEPENDENT": False}
    monkeypatch.setattr(dependent_launch, "DISABLED", True)
    assert options(torch.device("cuda:0")) == {"DEPENDENT": False}


@pytest.fixture
def weights() -> SimpleNamespace:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) / shape[-1] ** 0.5

    made = SimpleNamespace(
        up=random(1024, 512), down=random(512, 512), norm=random(512) + 1, experts_up=random(16, 256, 512),
        experts_down=random(16, 512, 128), scale=random(16) + 1, router=random(16, 512),
    )  # fmt: skip
    torch.cuda.synchronize()
    return made


def chain(x: torch.Tensor, w: SimpleNamespace) -> torch.Tensor:
    """Forty layers of short kernels that read each other's results and take each other's memory."""
    tiles = (config.default_tiles(len(x), 16),) * 2
    for _ in range(40):
        h = rms_norm.rms_norm(x, w.norm, 1e-6)
        m = matmul.matmul(activation.gelu_tanh_and_mul(matmul.matmul(h, w.up)), w.down)
        weights, ids = topk.topk_softmax(matmul.matmul(h, w.router), 4, w.scale)
        y = fused_moe.fused_experts_triton(h, w.experts_up, w.experts_down, weights, ids, tiles)
        x, _ = residual_norms.add_norm(x, m, w.norm, 1e-6, residual_norms.ExpertSum(y, w.norm, w.norm))
        x = rms_norm.rms_norm(x, None, 1e-6)
    return x


@pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("graph", [False, True])
@torch.inference_mode()
def test_a_chain_gives_the_same_bits(rows, graph, weights, monkeypatch):
    x = torch.randn(rows, 512, device="cuda", dtype=torch.bfloat16)

    def outcome(disabled: bool) -> list[torch.Tensor]:
        monkeypatch.setattr(dependent_launch, "DISABLED", disabled)
        launch_options.cache_clear()
        first = chain(x, weights).clone()
        torch.cuda.synchronize()
        if not graph:
            return [first, *(chain(x, weights).clone() for _ in range(5))]
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            out = chain(x, weights)
        results = [first]
        for _ in range(5):
            captured.replay()
            results.append(out.clone())
        return results

    want = outcome(disabled=True)
    got = outcome(disabled=False)
    launch_options.cache_clear()
    assert want[0].isfinite().all() and want[0].abs().sum() > 0
    assert all(torch.equal(a, want[0]) for a in (*want, *got))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
