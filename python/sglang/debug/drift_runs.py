"""The two kinds of run that the drift meter compares variants by: free-running, where each goes by its own tokens, and
teacher-forced, where all read the same ones. Knows prompts as token ids; what they mean is the caller's.
"""

from dataclasses import dataclass

import torch
from torch import nn

from sglang.debug.router_variants import Variant, routed_by
from sglang.debug.routing_record import LayerDrift, compare_records, recording
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.managers.tp_worker import InlineWorker
from sglang.test.engine_harness import load as load_engine
from sglang.test.paged_harness import PagedHarness

Tokens = list[int]
DRAFT_STEPS = 5


@dataclass(frozen=True)
class LoadedModel:
    model: nn.Module
    config: ModelConfig
    device: str


def generate(loaded: LoadedModel, variant: Variant, prompts: list[Tokens], max_new: int, batch: int) -> list[Tokens]:
    """Greedy answers without the token that ends them, `batch` prompts at a time.

    A finished row goes on with its batch, so that what one variant does to one prompt changes no other prompt's
    company, and with it the order in which products are summed.
    """
    answers = []
    with routed_by(loaded.model, variant):
        for start in range(0, len(prompts), batch):
            answers += _generate_batch(loaded, prompts[start : start + batch], max_new)
    return answers


def _generate_batch(loaded: LoadedModel, prompts: list[Tokens], max_new: int) -> list[Tokens]:
    total = sum(map(len, prompts)) + max_new * len(prompts)
    harness = PagedHarness(loaded.model, loaded.config, len(prompts), total, loaded.device)
    steps: list[Tokens] = []
    rows = dict(enumerate(prompts))
    ends = set(loaded.config.eos_token_ids)
    finished: set[int] = set()
    while len(steps) < max_new and len(finished) < len(prompts):
        logits = harness.step(rows, num_extends=0 if steps else len(rows))
        steps.append(torch.stack([logits[row][-1] for row in rows]).float().argmax(dim=-1).tolist())
        finished |= {row for row, token in enumerate(steps[-1]) if token in ends}
        rows = {row: [token] for row, token in enumerate(steps[-1])}
    return [_until_end(list(answer), ends) for answer in zip(*steps, strict=True)]


def _until_end(answer: Tokens, ends: set[int]) -> Tokens:
    return answer[: next((i for i, token in enumerate(answer) if token in ends), len(answer))]


def accept_lengths(
    folder: str, drafter: str, variants: tuple[Variant, ...], prompts: list[Tokens], max_new: int, **settings
) -> list[float]:
    """The mean accept length of `drafter` behind the target in `folder` with each variant: greedy answers through the
    engine, lines of DRAFT_STEPS tokens. `settings`: more server arguments. ValueError if the drafter does not fit.
    """
    loaded = load_engine(
        folder,
        speculative_algorithm="NEXTN",
        speculative_draft_model_path=drafter,
        speculative_num_steps=DRAFT_STEPS,
        **settings,
    )
    lengths = []
    for variant in variants:
        harness = loaded.harness(worker=InlineWorker(loaded.runner))
        for i, prompt in enumerate(prompts):
            params = {"top_k": 1, "stop_token_ids": loaded.config.eos_token_ids}
            harness.add(str(i), prompt, max_new, params=params)
        with routed_by(loaded.runner.model, variant):
            harness.run()
        stats = harness.scheduler.stats
        lengths.append(stats.accepted_tokens / max(1, stats.verified))
    return lengths


def first_difference(a: Tokens, b: Tokens) -> int | None:
    """The position, from 0, of the first output token that differs; None if the answers are equal."""
    if a == b:
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def teacher_forced(loaded: LoadedModel, a: Variant, b: Variant, texts: list[Tokens]) -> list[LayerDrift]:
    """How the choices of b, in its own run, differ from those of a over the same tokens, one text a forward."""
    with routed_by(loaded.model, a), recording(loaded.model, other=b) as record_a:
        for text in texts:
            _forward(loaded, text)
    with routed_by(loaded.model, b), recording(loaded.model) as record_b:
        for text in texts:
            _forward(loaded, text)
    return compare_records(record_a, record_b)


def _forward(loaded: LoadedModel, text: Tokens) -> None:
    PagedHarness(loaded.model, loaded.config, 1, len(text), loaded.device).step({0: text}, num_extends=1)
