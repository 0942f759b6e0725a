"""A step under way: Forwarded, after its first half, and LaunchedStep, what it will bring while the device still
computes it. `result()` waits for it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sglang.srt.layers.logprobs import PendingLogprobs, token_logprobs
from sglang.srt.model_executor.step_io import StepInput, StepOutput, TokenLogprob
from sglang.srt.utils.device_copies import to_device


@dataclass
class Forwarded:
    """What the model made of a step, for the sampler. Of S requests that get a token; without any, None."""

    rows: Tensor | None = None  # [S] int64, of the requests
    lengths: Tensor | None = None  # [S] int64: tokens they have, which is the position of the next
    logits: Tensor | None = None  # [S, V]
    prompt_logprobs: list[list[PendingLogprobs]] = field(default_factory=list)  # see LaunchedStep

    def drafts(self) -> None:
        """It has none."""


@dataclass
class LaunchedStep:
    """Host tensors that the stream fills before `done`; `done` is None on a CPU, where everything is there already."""

    next_ids: Tensor | None = None  # [S] int64, after drafts [S, most tokens there can be]
    # those of the sampled requests that asked, by their index, a row for every column of next_ids
    output_logprobs: tuple[list[int], PendingLogprobs] | None = None
    counts: Tensor | None = None  # [S] int64: how many columns of next_ids are tokens; None: the only one
    kept: Tensor | None = None  # see StepOutput; as many columns as next_ids
    prompt_logprobs: list[list[PendingLogprobs]] = field(default_factory=list)  # a list a PromptLogprobs, in parts
    done: torch.cuda.Event | None = None

    def result(self) -> StepOutput:
        """Blocks until the step is through. Raises what the device raised."""
        if self.done is not None:
            self.done.synchronize()
        if self.next_ids is None:
            output = StepOutput([])
        elif self.counts is None:
            output = StepOutput(self.next_ids[:, None].tolist())
        else:
            counts = self.counts.tolist()
            output = StepOutput(_cut(self.next_ids, counts), kept=_cut(self.kept, counts))
        if self.output_logprobs is not None:
            asked, pending = self.output_logprobs
            entries = _entries(pending)
            width = 1 if self.counts is None else self.next_ids.shape[1]
            output.output_logprobs = [None] * len(output.next_ids)
            for i, index in enumerate(asked):
                output.output_logprobs[index] = entries[i * width :][: len(output.next_ids[index])]
        output.prompt_logprobs = [[e for part in parts for e in _entries(part)] for parts in self.prompt_logprobs]
        return output


def _cut(columns: Tensor, counts: list[int]) -> list[list[int]]:
    return [row[:count] for row, count in zip(columns.tolist(), counts, strict=True)]


def _entries(pending: PendingLogprobs) -> list[TokenLogprob]:
    return [TokenLogprob(*row) for row in zip(*pending.lists(), strict=True)]


def output_logprobs(step: StepInput, scaled: Tensor, places: Tensor, ids: Tensor) -> tuple[list[int], PendingLogprobs]:
    """Of the requests that asked (see LaunchedStep): of `ids` [S, W], by rows `places` [S, W] of `scaled` [rows, V]."""
    asked = [i for i, request in enumerate(step.output_logprobs) if request is not None]
    index, width = to_device(asked, torch.int64, ids.device), ids.shape[1]
    top, selected = zip(*(step.output_logprobs[i] for i in asked for _ in range(width)), strict=True)
    pending = token_logprobs(scaled[places[index].flatten()], ids[index].flatten(), list(top), list(selected))
    return asked, pending
