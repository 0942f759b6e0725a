"""Engines with drafts, and a drafter that has heard what the target will say: for tests of speculation."""

import torch

from sglang.test.engine_harness import DEVICE, engine
from sglang.test.scheduler_harness import Harness
from sglang.test.tiny_models import VOCAB

SHAPES = {"line": (5, 1, 6), "short": (1, 1, 2), "tree": (5, 3, 12), "wide": (2, 4, 9)}  # steps, topk, draft tokens


def speculating(path, drafter_path, shape: str, **settings) -> Harness:
    steps, topk, tokens = SHAPES[shape]
    return engine(
        path,
        speculative_algorithm="NEXTN",
        speculative_draft_model_path=str(drafter_path),
        speculative_num_steps=steps,
        speculative_eagle_topk=topk,
        speculative_num_draft_tokens=tokens,
        **settings,
    )


class Hearsay(torch.nn.Module):
    """A drafter that has heard how the target goes on, and gets some of it wrong.

    `told` maps (token, index of the token after it) to that token. The state it hands on holds its step.
    """

    def __init__(self, told: dict[tuple[int, int], int], sure: float):
        super().__init__()
        self.told, self.sure = told, sure
        self.noise = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0)).to(DEVICE)

    def forward(self, input_ids, prev, positions, batch):
        step = torch.where(prev[:, 0] > 1e6, prev[:, 0] / 1e7, 0.0).round().long()
        state = torch.zeros_like(prev)
        state[:, 0] = (step + 1) * 1e7
        return torch.stack([input_ids, batch.seq_lens + 1 + step], 1), state

    def candidates(self, hidden):
        logits = self.noise[hidden[:, 0]].clone()
        for row, key in enumerate(map(tuple, hidden.tolist())):
            if key in self.told:
                logits[row, self.told[key]] += self.sure
        return logits, None


def teach(h: Harness, answers: dict[str, tuple[list[int], list[int]]], sure: float = 4.0) -> None:
    """Replace the engine's drafter by one that has heard `answers` (prompt and output of each)."""
    told = {}
    for prompt, output in answers.values():
        tokens = prompt + output
        told |= {(tokens[i - 1], i): tokens[i] for i in range(1, len(tokens))}
    speculation_of(h).drafter = Hearsay(told, sure)
    speculation_of(h).graphs.clear()  # they hold the drafter that was there


def speculation_of(h: Harness):
    return h.worker.runner.speculation
