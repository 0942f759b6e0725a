"""What is done for Gemma leaves others alone: a Llama takes the same kernels with the same block sizes and grids, and
other expert shapes the same tiles, whether or not the Gemma-specific modules can even be imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=25, suite="base-a-test-cpu")

GEMMA_ONLY = (
    "sglang.srt.models.gemma4_causal",
    "sglang.srt.configs.gemma4",
    "sglang.srt.ops.norms.qkv_norm_rope",
    "sglang.srt.ops.norms.qkv_rms_norm",
    "sglang.srt.layers.moe.router",
)


def record(folder: str, blocked: bool) -> list:
    """Serve a prompt and two tokens of the Llama in `folder`; every kernel launched, and tiles of foreign experts."""
    for name in GEMMA_ONLY if blocked else ():
        sys.modules[name] = None  # importing it raises ImportError
    import sglang.test.triton_testing  # noqa: F401  the interpreter, before kernels are defined

    # isort: split
    import torch
    from triton.runtime import interpreter

    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.layers.attention.triton_backend import TritonBackend
    from sglang.srt.model_loader.loader import load_model
    from sglang.srt.ops.attention.tiles import extend_tile
    from sglang.srt.ops.moe.config import get_config
    from sglang.test.paged_harness import PagedHarness

    seen: list = []
    run = interpreter.GridExecutor.__call__

    def spy(self, *args, **kwargs):
        numbers = {k: v for k, v in kwargs.items() if isinstance(v, int | bool)}
        seen.append([self.fn.__name__, list(self.grid) if isinstance(self.grid, tuple) else "function", numbers])
        return run(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = spy
    config = ModelConfig.load(folder, None, None, "float32")
    harness = PagedHarness(load_model(config, "auto", torch.device("cpu")), config)
    harness.backend = TritonBackend(config.kv_layers, config.text.num_heads, 8, None, 64, torch.float32, "cpu")
    harness.step({0: list(range(5, 30)), 1: [7, 8, 9]})
    harness.step({0: [11], 1: [12]})
    for dim in (64, 128, 192, 256):
        seen.append([dim, str(extend_tile((9, 0), dim))])
    for experts, width in ((8, 14336), (64, 1408), (160, 1536)):
        tiles = get_config(experts, width, "NVIDIA H200", torch.bfloat16, 64, False, "3.6.0")
        seen.append([experts, width, str(tiles)])
    return seen


def recorded(folder: Path, blocked: bool) -> list:
    command = [sys.executable, __file__, "--record", str(folder), str(int(blocked))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_llama_runs_the_same_without_gemma(tmp_path: Path):
    import torch

    from sglang.test.tiny_models import make_tiny_llama

    folder = make_tiny_llama(tmp_path, "llama", dtype=torch.float32)
    with_gemma, without = recorded(folder, False), recorded(folder, True)
    assert with_gemma == without
    names = {entry[0] for entry in with_gemma}
    assert {"_extend_kernel", "_decode_kernel"} <= names, names


if __name__ == "__main__":
    if sys.argv[1:2] == ["--record"]:
        print(json.dumps(record(sys.argv[2], sys.argv[3] == "1")))
    else:
        sys.exit(pytest.main([__file__, "-x", "-q"]))
