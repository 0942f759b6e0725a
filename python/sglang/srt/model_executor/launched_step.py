"""LaunchedStep: what a step will bring, while the device still computes it. `result()` waits for it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sglang.srt.layers.logprobs import PendingLogprobs
from sglang.srt.model_executor.step_io import StepOutput, TokenLogprob


@dataclass
class LaunchedStep:
    """Host tensors that the stream fills before `done`; `done` is None on a CPU, where everything is there already."""

    next_ids: Tensor | None = None  # [S] int64
    # those of the sampled requests that asked, by their index
    output_logprobs: tuple[list[int], PendingLogprobs] | None = None
    prompt_logprobs: list[list[PendingLogprobs]] = field(default_factory=list)  # a list a PromptLogprobs, in parts
    done: torch.cuda.Event | None = None

    def result(self) -> StepOutput:
        """Blocks until the step is through. Raises what the device raised."""
        if self.done is not None:
            self.done.synchronize()
        output = StepOutput([] if self.next_ids is None else self.next_ids.tolist())
        if self.output_logprobs is not None:
            asked, pending = self.output_logprobs
            output.output_logprobs = [None] * len(output.next_ids)
            for index, entry in zip(asked, _entries(pending), strict=True):
                output.output_logprobs[index] = entry
        output.prompt_logprobs = [[e for part in parts for e in _entries(part)] for parts in self.prompt_logprobs]
        return output


def _entries(pending: PendingLogprobs) -> list[TokenLogprob]:
    return [TokenLogprob(*row) for row in zip(*pending.lists(), strict=True)]
