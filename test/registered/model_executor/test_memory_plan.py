"""A model that memory does not hold is refused in one line, before anything is taken; and a pool takes what is used."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from sglang.srt.configs.kv_layers import KVLayerSpec
from sglang.srt.layers.attention.kv_pool import KVArena
from sglang.srt.managers.run_scheduler import resolve_for_model
from sglang.srt.mem_cache.arena import ArenaShape
from sglang.srt.model_executor import memory_plan
from sglang.srt.server_args import ServerArgs
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=4, suite="base-a-test-cpu")

LARGE = Path(__file__).resolve().parents[3] / "benchmark/gemma4/configs/26b-a4b"
GB = 10**9


def refusal(monkeypatch, free: float, folder: Path | None = LARGE, **flags) -> str | None:
    """What is said to a server with so many bytes free, None if it may start."""
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: int(free))
    model = {} if folder is None else {"model_path": str(folder), "load_format": "dummy", "skip_tokenizer_init": True}
    try:
        resolve_for_model(ServerArgs(device="cpu", **model, **flags))
    except ValueError as e:
        return str(e)
    return None


def test_weights_that_do_not_fit(monkeypatch):
    said = refusal(monkeypatch, 20 * GB)
    assert "50.9 GB of weights, and of 20.0 GB free host memory --mem-fraction-static 0.5 leaves 10.0 GB" in said
    assert "take a smaller model" in said and "\n" not in said


def test_a_share_that_is_too_small(monkeypatch):
    said = refusal(monkeypatch, 80 * GB)
    assert "50.9 GB of weights, and of 80.0 GB free" in said and "raise it, or end" in said
    assert refusal(monkeypatch, 80 * GB, mem_fraction_static=0.9) is None


def test_weights_without_room_for_one_request(monkeypatch):
    said = refusal(monkeypatch, 51.6 * GB, mem_fraction_static=0.99)
    assert "KV memory of" in said and "but one request needs" in said


def test_ranks_share_the_host(monkeypatch):
    """All of them together are what must fit: 4 ranks of a fourth each, and what each has of its own."""
    assert "of 4 ranks, and of 90.0 GB free" in refusal(monkeypatch, 90 * GB, tp_size=4)
    assert refusal(monkeypatch, 150 * GB, tp_size=4) is None


def test_a_gpu_is_asked_for_its_own_memory(monkeypatch):
    asked = []
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: asked.append(device.type) or 80 * GB)
    for device, tp_size, share in (("cuda", 2, 80 * GB), ("cpu", 2, 40 * GB)):
        args, _ = resolve_for_model(ServerArgs(device="cpu"))
        object.__setattr__(args, "device", device)
        object.__setattr__(args, "tp_size", tp_size)
        assert memory_plan.free_for_rank(args) == share
    assert asked[1] == "cuda" and asked[-1] == "cpu"


def test_drafters_count(monkeypatch):
    """The shipped model fits where it does not fit with its drafter."""
    monkeypatch.setattr(memory_plan, "kv_shape", lambda *_: None)
    free = 60e6  # half of it for 28 MB of the model, buffers included, and 7 MB of the drafter
    assert refusal(monkeypatch, free, None) is None
    assert "does not fit" in refusal(monkeypatch, free, None, speculative_algorithm="NEXTN")


def host_tier(monkeypatch, free: float, **flags) -> ArenaShape:
    """Of a card with 100 pages of 1 MB beside the padding, 20 full or 4 sliding slots each."""
    monkeypatch.setattr(memory_plan.host, "free_memory", lambda: int(free))
    args, _ = resolve_for_model(ServerArgs(device="cpu", enable_hierarchical_cache=True, **flags))
    return memory_plan.host_shape(args, ArenaShape(100, 20, 4, 1500, 300, 2), 10**6, 64)


def test_the_host_tier_has_the_pages_that_were_asked_for(monkeypatch):
    assert host_tier(monkeypatch, 80 * GB) == ArenaShape(199, 20, 4, 3980, 796, 2)
    assert host_tier(monkeypatch, 80 * GB, hicache_ratio=0.5).num_pages == 49
    assert host_tier(monkeypatch, 80 * GB, hicache_ratio=0.5, hicache_size=1.0).num_pages == 999


def test_a_host_tier_that_does_not_fit_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"--hicache-size 50 takes 50.0 GB .* 40.0 GB are free .*-size 36 is the most"):
        host_tier(monkeypatch, 80 * GB, hicache_size=50.0, tp_size=2)
    with pytest.raises(ValueError, match=r"--hicache-ratio 400 takes 40.0 GB"):
        host_tier(monkeypatch, 40 * GB, hicache_ratio=400.0)
    with pytest.raises(ValueError, match="--hicache-size 0.01: 10.0 MB hold no prefix; 18.0 MB would"):
        host_tier(monkeypatch, 40 * GB, hicache_size=0.01)
    assert host_tier(monkeypatch, 40 * GB, hicache_size=0.018).num_pages == 17


@pytest.mark.parametrize("module", ["sglang.launch_server", "sglang.bench_one_batch"])
def test_programs_end_with_2_and_a_line(module, tmp_path):
    words = [sys.executable, "-m", module, "--model-path", str(LARGE), "--load-format", "dummy", "--device", "cpu"]
    words += ["--skip-tokenizer-init", "--log-level", "error", "--json-model-override-args", '{"num_experts": 65536}']
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, cwd=tmp_path, env=os.environ)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: the model does not fit: 2") and "GB of weights" in done.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_pool_takes_what_is_used_of_it(dtype):
    """Half a GB of slots of which ten are written."""
    process = psutil.Process()
    before = process.memory_info().rss
    spec = KVLayerSpec(0, False, 1, 256 // dtype.itemsize)
    pool = KVArena([spec], ArenaShape(1 << 20, 1, 0, 1 << 20, 0), dtype, "cpu")
    k, v = pool.get_kv(0)
    assert k.shape == (1 + (1 << 20), 1, 256 // dtype.itemsize) and k.dtype == dtype
    k[10:20] = 1
    assert k[10:20].all() and not k[:10].any() and not k[20:40].any() and not v[-10:].any()
    assert process.memory_info().rss - before < 64 << 20


def test_empty_shells_need_no_compiler(monkeypatch):
    """Some operations on the meta device make torch import its compiler, or sympy: seconds of every start."""
    for name in ("torch._dynamo", "torch.fx.experimental.symbolic_shapes"):
        monkeypatch.setitem(sys.modules, name, None)  # what an import finds, and raises ImportError for
    assert refusal(monkeypatch, 80 * GB, mem_fraction_static=0.9) is None
    assert refusal(monkeypatch, 80 * GB, None, speculative_algorithm="NEXTN") is None


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
