"""Log-probabilities of chosen, best and asked-for tokens, computed on the device, then host lists for the protocol.

They are natural logarithms of softmax over the logits given: for output tokens those after penalties and temperature
(SamplingState.sample, which knows the exception), for prompt tokens the model's own. What is barred gets the lowest
fp32 number in place of -inf, which JSON does not have; upstream does the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sglang.srt.utils.device_copies import to_device, to_host

TopList = list[tuple[float, int]]

BLOCK_ELEMENTS = 1 << 23  # of logits at a time: bounds the temporaries (64 MB for each int64 one)
LOWEST = torch.finfo(torch.float32).min


@dataclass
class _Block:
    """Host copies of some rows' numbers, and how many of them each row asked for."""

    values: Tensor  # [n]
    best: tuple[Tensor, Tensor] | None  # log p and ids, each [n, most asked for]
    selected: Tensor | None  # [n, most asked for]
    top: list[int]
    selected_ids: list[list[int] | None]


class PendingLogprobs:
    """What token_logprobs() has started. `lists()` may be called once the device has passed that point."""

    def __init__(self, blocks: list[_Block]):
        self._blocks = blocks

    def lists(self) -> tuple[list[float], list[TopList | None], list[list[float] | None]]:
        """Of each row: its token's log p, its best (log p, id) pairs, its selected tokens' log p; None = not asked."""
        values: list[float] = []
        best: list[TopList | None] = []
        asked: list[list[float] | None] = []
        for block in self._blocks:
            values += block.values.tolist()
            best += _best_lists(block)
            asked += _selected_lists(block)
        return values, best, asked


def token_logprobs(logits: Tensor, ids: Tensor, top: list[int], selected: list[list[int] | None]) -> PendingLogprobs:
    """For each row of `logits` [N, V]: log p of `ids` [N] int64, the `top[i]` best (log p, id) pairs (at most V), best
    first and equal ones by id, and log p of the `selected[i]` ids.

    Does not wait for the device. Token ids must be in 0..V-1.
    """
    blocks = []
    size = max(1, BLOCK_ELEMENTS // logits.shape[1])
    for start in range(0, len(top), size):
        rows = slice(start, start + size)
        logprobs = torch.log_softmax(logits[rows].float(), dim=-1).clamp_(min=LOWEST)
        values = to_host(logprobs.gather(1, ids[rows, None]).squeeze(1))
        best, asked = _best(logprobs, max(top[rows])), _selected(logprobs, selected[rows])
        blocks.append(_Block(values, best, asked, top[rows], selected[rows]))
    return PendingLogprobs(blocks)


def _best(logprobs: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
    count = min(count, logprobs.shape[1])
    if count == 0:
        return None
    # topk leaves the order of equal values open, so it gets unique integers: the value's rank above, the id below.
    last = logprobs.shape[1] - 1
    bits = (logprobs + 0.0).view(torch.int32)  # + 0.0: no negative zeros
    rank = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()  # orders as the floats do
    keys = (rank << 32) + torch.arange(last, -1, -1, device=logprobs.device)
    ids = last - (keys.topk(count).values & 0xFFFFFFFF)
    return to_host(logprobs.gather(1, ids)), to_host(ids)


def _best_lists(block: _Block) -> list[TopList | None]:
    if block.best is None:
        return [None] * len(block.top)
    pairs = zip(*(column.tolist() for column in block.best), strict=True)
    rows = [list(zip(values, ids, strict=True)) for values, ids in pairs]
    return [row[:n] if n else None for row, n in zip(rows, block.top, strict=True)]


def _selected(logprobs: Tensor, selected: list[list[int] | None]) -> Tensor | None:
    width = max(len(ids or ()) for ids in selected)
    if width == 0:
        return None
    padded = [(ids or []) + [0] * (width - len(ids or ())) for ids in selected]
    return to_host(logprobs.gather(1, to_device(padded, torch.int64, logprobs.device)))


def _selected_lists(block: _Block) -> list[list[float] | None]:
    if block.selected is None:
        return [None] * len(block.selected_ids)
    rows = zip(block.selected.tolist(), block.selected_ids, strict=True)
    return [row[: len(ids)] if ids else None for row, ids in rows]
