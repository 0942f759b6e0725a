"""Commands that are published for Gemma 4, as they stand there: each starts once its model is there, or is refused with
a sentence that says what to type instead."""

import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import sglang
from sglang.srt.arg_fields import all_flags, name_of
from sglang.srt.resolved_args import resolve
from sglang.srt.server_args import ServerArgs, parse_with_server_args
from sglang.srt.unsupported_flags import refusal
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=2, suite="unit-test-cpu")

MODEL = SimpleNamespace(
    context_len=262144, dtype="bfloat16", sliding_window=1024, vocab_size=262144,
    architectures=["Gemma4ForConditionalGeneration"],
)  # fmt: skip
PAGE = Path(sglang.__file__).parents[2] / "docs" / "commands.md"
PARSERS = {"reasoning_parser": "gemma4", "tool_call_parser": "gemma4"}
DRAFTS = {"speculative_num_steps": 5, "speculative_num_draft_tokens": 6, "speculative_eagle_topk": 1}
NEXTN = (
    "--speculative-algorithm NEXTN --speculative-draft-model-path google/gemma-4-{0}-it-assistant "
    "--speculative-num-steps 5 --speculative-num-draft-tokens 6 --speculative-eagle-topk 1"
)

# SGLang's cookbook, its command generator, the model pages of the hub, and recipes of others -> what it comes to.
STARTS = {
    'python3 -m sglang.launch_server --model-path "google/gemma-4-26B-A4B-it" --host 0.0.0.0 --port 30000': {
        "host": "0.0.0.0", "port": 30000, "tp_size": 1, "served_model_name": "google/gemma-4-26B-A4B-it",
    },
    "sglang serve --model-path google/gemma-4-E4B-it --reasoning-parser gemma4 --tool-call-parser gemma4 "
    "--host 0.0.0.0 --port 30000": PARSERS,
    "sglang serve google/gemma-4-26B-A4B-it --reasoning-parser gemma4 --tool-call-parser gemma4 "
    "--mem-fraction-static 0.85 --host 0.0.0.0 --port 30000": PARSERS | {"mem_fraction_static": 0.85},
    "sglang serve --model-path google/gemma-4-31B-it --tp 2 --reasoning-parser gemma4 --tool-call-parser gemma4 "
    "--mem-fraction-static 0.9": PARSERS | {"tp_size": 2},
    f"sglang serve --model-path google/gemma-4-E2B-it {NEXTN.format('E2B')} --mem-fraction-static 0.85": DRAFTS,
    f"sglang serve --model-path google/gemma-4-31B-it --tp-size 2 {NEXTN.format('31B')} --mem-fraction-static 0.85": {
        "tp_size": 2, "speculative_draft_model_path": "google/gemma-4-31B-it-assistant", **DRAFTS,
    },
    f"sglang serve --model-path google/gemma-4-26B-A4B-it --tp 2 --reasoning-parser gemma4 --tool-call-parser gemma4 "
    f"{NEXTN.format('26B-A4B')} --mem-fraction-static 0.85 --host 0.0.0.0 --port 30000": PARSERS | DRAFTS,
    "sglang serve --model-path google/gemma-4-12B-it --attention-backend triton": {"attention_backend": "triton"},
    "sglang serve --model-path google/gemma-4-26B-A4B-it --scheduler-recv-interval 16": {"scheduler_recv_interval": 16},
    "python3 -m sglang.launch_server --model-path google/gemma-4-12B-it --trust-remote-code --tp 1 "
    "--tool-call-parser gemma4 --reasoning-parser gemma4": PARSERS | {"trust_remote_code": True},
    "python -m sglang.launch_server --model google/gemma-4-E4B-it --dtype half --kv-cache-dtype auto "
    "--moe-runner-backend triton --log-requests-level 0 --disable-cuda-graph": {
        "dtype": "float16", "moe_runner_backend": "triton", "kv_cache_dtype": "auto",
    },
    "python3 -m sglang.launch_server --model-path google/gemma-4-26B-A4B-it --speculative-algorithm NEXTN "
    "--speculative-draft-model-path google/gemma-4-26B-A4B-it-assistant --speculative-num-steps 5 "
    "--speculative-eagle-topk 3 --speculative-num-draft-tokens 12 --attention-backend triton --dtype bfloat16 "
    "--mem-fraction-static 0.55 --max-running-requests 16 --context-length 2048 --max-total-tokens 32768 "
    "--skip-server-warmup --enable-deterministic-inference --tp-size 2 --device cuda": {
        "speculative_eagle_topk": 3, "context_length": 2048, "device": "cuda",
    },
}  # fmt: skip

QUANTIZED = "--quantization is not supported: weights are read from safetensors as they are; leave it out"
KV = "--kv-cache-dtype: {!r} is not one of auto, float32, bfloat16, float16"
TEXT = "--{} is not supported: only text is served; leave it out"
AUTO_TOOLS = (
    "--enable-auto-tool-choice is vLLM's; calls are read here wherever --tool-call-parser is on, as it is for Gemma 4; "
    "leave it out"
)
LENGTH = "--max-model-len is vLLM's name: here it is --context-length"
SHARE = (
    "--gpu-memory-utilization is vLLM's name: here it is --mem-fraction-static, which is the share of weights and KV "
    "cache alone: what a step needs beside them comes on top"
)

REFUSED = {
    "sglang serve --model-path google/gemma-4-31B-it --quantization modelopt_fp4 --kv-cache-dtype fp8_e4m3 "
    "--attention-backend triton --tool-call-parser gemma4": [QUANTIZED, KV.format("fp8_e4m3")],
    "sglang serve --model-path google/gemma-4-26B-A4B-it --quantization fp8 --dp-size 2": [
        QUANTIZED, "--dp-size is not supported: a model is split over GPUs by --tp-size alone; leave it out",
    ],
    "sglang serve --model-path google/gemma-4-E4B-it --enable-multimodal --limit-mm-data-per-request '{\"image\": 4}' "
    "--mm-attention-backend triton_attn": [
        TEXT.format("enable-multimodal"), TEXT.format("limit-mm-data-per-request"), TEXT.format("mm-attention-backend"),
    ],
    "python -m sglang.launch_server --model-path google/gemma-4-31B-it --enable-lora --lora-paths a=b": [
        "--enable-lora is not supported: LoRA adapters are not served; leave it out",
        "--lora-paths is not supported: LoRA adapters are not served; leave it out",
    ],
    "vllm serve google/gemma-4-26B-A4B-it --max-model-len 32768 --gpu-memory-utilization 0.90 "
    "--enable-auto-tool-choice --tool-call-parser gemma4 --reasoning-parser gemma4 --async-scheduling "
    "--limit-mm-per-prompt image=4": [
        LENGTH, SHARE, AUTO_TOOLS, "--async-scheduling is vLLM's; here it is the default; leave it out",
        "--limit-mm-per-prompt is vLLM's; only text is served here; leave it out",
    ],
    "vllm serve google/gemma-4-E4B --max-model-len=131072 --gpu-memory-utilization=0.90 --kv-cache-dtype=fp8 "
    "--dtype=bfloat16 --enforce-eager --max-num-seqs=8": [
        LENGTH, SHARE, "--enforce-eager is vLLM's name: here it is --disable-cuda-graph",
        "--max-num-seqs is vLLM's name: here it is --max-running-requests", KV.format("fp8"),
    ],
    "vllm serve google/gemma-4-31B-it --tensor-parallel-size 2 --max-num-batched-tokens 8192 "
    "--no-enable-prefix-caching": [
        "--max-num-batched-tokens is vLLM's name: here it is --chunked-prefill-size, which counts prompt tokens of a "
        "step alone",
        "--no-enable-prefix-caching is vLLM's name: here it is --disable-radix-cache",
    ],
}  # fmt: skip


def parse(command: str) -> ServerArgs:
    words = shlex.split(command)
    start = words.index("serve") + 1 if "serve" in words else words.index("sglang.launch_server") + 1
    return parse_with_server_args(words[start:], "sglang serve", "", model_first="serve" in words)[0]


@pytest.mark.parametrize("command", STARTS)
def test_starts(command: str):
    args = parse(command)
    assert args.model_path.startswith("google/gemma-4-")
    resolved = resolve(args, MODEL, "cuda", memory_mib=140 * 1024)
    assert {name: getattr(resolved, name) for name in STARTS[command]} == STARTS[command]


@pytest.mark.parametrize("command", REFUSED)
def test_is_refused_with_all_reasons(command: str, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(command)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {'. '.join(REFUSED[command])}\n"


def test_the_page_of_commands_has_the_pairs_of_the_code():
    rows = [
        line.split("|")[1:3] for line in PAGE.read_text().partition("## From vLLM")[2].splitlines() if "| `--" in line
    ]
    assert len(rows) > 15
    for theirs, ours in rows:
        for flag in re.findall(r"`(--[\w-]+)`", theirs):
            wanted = re.findall(r"`(--[\w-]+)", ours)
            if ours.strip() == "the same":
                assert flag in all_flags(ServerArgs)
            else:
                assert all(name in refusal(name_of(flag)) for name in wanted or ["leave it out"]), flag


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
