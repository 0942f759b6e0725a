"""The shipped model on a GPU in bfloat16 answers as it does on a CPU in float32, and its layers stay as close to
transformers as transformers' own rounding does."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Gemma4ForCausalLM

import sglang
from sglang.assets import shipped_model_path
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.layers.attention.triton_backend import TritonBackend
from sglang.srt.model_loader.loader import load_model
from sglang.srt.models.gemma4_causal import Gemma4DecoderLayer
from sglang.test.ci.ci_register import register_cuda_ci
from sglang.test.eval_data import last_number, load
from sglang.test.paged_harness import PagedHarness

register_cuda_ci(est_time=150, stage="base-b", runner_config="1-gpu-large")

DATA = Path(sglang.__file__).parent / "test" / "data" / "mini_gsm_seen.jsonl"
QUESTIONS = 200
DEVICE = "cuda"


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
    ids = chat_ids([row.question for row in rows])
    gold = [row.gold for row in rows]
    cpu = answers(ids, device="cpu", dtype="float32")
    gpu = answers(ids, device="cuda", dtype="bfloat16", attention_backend="triton")
    same = sum(a == b for a, b in zip(cpu, gpu, strict=True))
    scores = [sum(last_number(t) == g for t, g in zip(texts, gold, strict=True)) for texts in (cpu, gpu)]
    print(f"same answers {same}/{QUESTIONS}, right on the CPU {scores[0]}, on the GPU {scores[1]}")
    assert same >= 0.95 * QUESTIONS
    assert abs(scores[0] - scores[1]) <= 0.02 * QUESTIONS


class Streams:
    """The residual stream after each layer of a model, each layer fed with the stream `inputs` has for it, if given."""

    def __init__(self, layers: nn.ModuleList, inputs: list[Tensor] | None = None):
        self.after: list[Tensor] = []
        self.before: list[Tensor] = []
        self.inputs = inputs
        for layer in layers:
            layer.register_forward_pre_hook(self.on_input)
            layer.register_forward_hook(self.on_output)

    def on_input(self, layer: nn.Module, args: tuple) -> tuple | None:
        h, *rest = args
        if self.inputs is not None:
            h = self.inputs[len(self.before)].to(h.dtype).view(h.shape)
            if isinstance(layer, Gemma4DecoderLayer):  # ours gets its first norm's output too
                rest[0] = layer.input_layernorm(h)
        self.before.append(h.flatten(0, -2))
        return h, *rest

    def on_output(self, _layer: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
        h = output[0] if isinstance(output, tuple) else output
        self.after.append(h.flatten(0, -2).float())


@torch.no_grad()
def test_layers_are_as_close_to_transformers_as_its_own_rounding():
    """Each layer fed with the same bfloat16 stream: our output's distance from transformers' bfloat16 output is at most
    the distance of that from transformers' float32 output."""
    path = shipped_model_path()
    [prompt] = chat_ids([load(DATA)[0].question])
    theirs = {}
    for dtype in (torch.bfloat16, torch.float32):
        model = Gemma4ForCausalLM.from_pretrained(path, dtype=dtype).to(DEVICE).eval()
        before = theirs[torch.bfloat16].before if theirs else None
        theirs[dtype] = Streams(model.model.layers, before)
        model(torch.tensor([prompt], device=DEVICE))
    rounded, exact = theirs[torch.bfloat16], theirs[torch.float32]

    config = ModelConfig.load(str(path), None, None, "bfloat16")
    model = load_model(config, "auto", torch.device(DEVICE))
    harness = PagedHarness(model, config, device=DEVICE)
    harness.backend = TritonBackend(
        config.kv_layers, config.text.num_heads, 8, config.sliding_window, 4096, config.torch_dtype, DEVICE
    )
    ours = Streams(model.model.layers, rounded.before)
    harness.step({0: prompt})
    assert len(ours.after) == len(rounded.after) == len(exact.after) == len(model.model.layers)
    for i, (h, theirs_own, truth) in enumerate(zip(ours.after, rounded.after, exact.after, strict=True)):
        apart, rounding = ((x - theirs_own).norm() / truth.norm() for x in (h, truth))
        print(f"layer {i}: ours to theirs {apart:.2e}, theirs to float32 {rounding:.2e}")
        assert apart <= rounding


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q", "-s"]))
