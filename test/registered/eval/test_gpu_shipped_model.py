"""The shipped model on a GPU in bfloat16 answers as it does on a CPU in float32, and its layers stay as close to
transformers as transformers' own rounding does."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Gemma4ForCausalLM

import sglang
from sglang.assets import shipped_model_path
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.layers.attention.triton_backend import TritonBackend
from sglang.srt.model_loader.loader import load_model
from sglang.test.ci.ci_register import register_cuda_ci
from sglang.test.gsm8k_eval import last_number, load
from sglang.test.paged_harness import PagedHarness

register_cuda_ci(est_time=150, stage="base-b", runner_config="1-gpu-large")

DATA = Path(sglang.__file__).parent / "test" / "data" / "mini_gsm_seen.jsonl"
QUESTIONS = 200


def chat_ids(questions: list[str]) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(shipped_model_path())
    turns = [[{"role": "user", "content": question}] for question in questions]
    return [tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"] for turn in turns]


def answers(ids: list[list[int]], **args) -> list[str]:
    with sglang.Engine(random_seed=1, max_total_tokens=60_000, **args) as engine:
        params = {"temperature": 0, "max_new_tokens": 256}
        return [reply["text"] for reply in engine.generate(input_ids=ids, sampling_params=params)]


def test_gpu_bfloat16_answers_as_cpu_float32():
    rows = load(DATA)[:QUESTIONS]
    ids = chat_ids([row["question"] for row in rows])
    gold = [last_number(row["answer"]) for row in rows]
    cpu = answers(ids, device="cpu", dtype="float32")
    gpu = answers(ids, device="cuda", dtype="bfloat16", attention_backend="triton")
    same = sum(a == b for a, b in zip(cpu, gpu, strict=True))
    scores = [sum(last_number(t) == g for t, g in zip(texts, gold, strict=True)) for texts in (cpu, gpu)]
    print(f"same answers {same}/{QUESTIONS}, right on the CPU {scores[0]}, on the GPU {scores[1]}")
    assert same >= 0.95 * QUESTIONS
    assert abs(scores[0] - scores[1]) <= 0.02 * QUESTIONS


@torch.no_grad()
def test_layers_are_as_close_to_transformers_as_its_own_rounding():
    """Relative error of the residual stream after each layer: ours against transformers, both bfloat16, at most that of
    transformers' bfloat16 against its float32."""
    path = shipped_model_path()
    [prompt] = chat_ids([load(DATA)[0]["question"]])
    tokens = torch.tensor([prompt], device="cuda")
    theirs = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = Gemma4ForCausalLM.from_pretrained(path, dtype=dtype).cuda().eval()
        theirs[dtype] = [h[0].float() for h in model(tokens, output_hidden_states=True).hidden_states]

    config = ModelConfig.load(str(path), None, None, "bfloat16")
    ours = load_model(config, "auto", torch.device("cuda"))
    harness = PagedHarness(ours, config, device="cuda")
    harness.backend = TritonBackend(config.kv_layers, config.text.num_heads, 8, config.torch_dtype, "cuda")
    streams = []
    for layer in ours.model.layers:
        layer.register_forward_hook(lambda _module, _inputs, h: streams.append(h.float()))
    harness.step({0: prompt})

    def error(a, b):
        return ((a - b).norm() / b.norm()).item()

    exact, rounded = theirs[torch.float32], theirs[torch.bfloat16]
    for i, h in enumerate(streams[:-1], 1):  # transformers' last entry is after the final norm
        own, theirs_own = error(h, rounded[i]), error(rounded[i], exact[i])
        print(f"layer {i}: ours to theirs {own:.2e}, theirs to float32 {theirs_own:.2e}")
        assert own <= theirs_own


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q", "-s"]))
