"""Log-probabilities of chosen, best and asked-for tokens, as host lists ready for the protocol.

They are natural logarithms of softmax over the logits given: for output tokens those after penalties and temperature
(SamplingState.sample), for prompt tokens the model's own. What is barred gets the lowest fp32 number in place of -inf,
which JSON does not have; upstream does the same.
"""

import torch
from torch import Tensor

TopList = list[tuple[float, int]]

BLOCK_ELEMENTS = 1 << 23  # of logits at a time: bounds the temporaries (64 MB for each int64 one)
LOWEST = torch.finfo(torch.float32).min


def token_logprobs(
    logits: Tensor, ids: Tensor, top: list[int], selected: list[list[int] | None]
) -> tuple[list[float], list[TopList | None], list[list[float] | None]]:
    """For each row of `logits` [N, V]: log p of `ids` [N] int64, the `top[i]` best (log p, id) pairs (at most V), best
    first and equal ones by id, and log p of the `selected[i]` ids. None where a row asks for no best or selected ones.

    Waits for the device. Token ids must be in 0..V-1.
    """
    values: list[float] = []
    best: list[TopList | None] = []
    asked: list[list[float] | None] = []
    size = max(1, BLOCK_ELEMENTS // logits.shape[1])
    for start in range(0, len(top), size):
        rows = slice(start, start + size)
        logprobs = torch.log_softmax(logits[rows].float(), dim=-1).clamp_(min=LOWEST)
        values += logprobs.gather(1, ids[rows, None]).squeeze(1).tolist()
        best += _best(logprobs, top[rows])
        asked += _selected(logprobs, selected[rows])
    return values, best, asked


def _best(logprobs: Tensor, top: list[int]) -> list[TopList | None]:
    count = min(max(top), logprobs.shape[1])
    if count == 0:
        return [None] * len(top)
    # topk leaves the order of equal values open, so it gets unique integers: the value's rank above, the id below.
    last = logprobs.shape[1] - 1
    bits = (logprobs + 0.0).view(torch.int32)  # + 0.0: no negative zeros
    rank = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()  # orders as the floats do
    keys = (rank << 32) + torch.arange(last, -1, -1, device=logprobs.device)
    ids = last - (keys.topk(count).values & 0xFFFFFFFF)
    pairs = zip(logprobs.gather(1, ids).tolist(), ids.tolist(), strict=True)
    rows = [list(zip(values, tokens, strict=True)) for values, tokens in pairs]
    return [row[:n] if n else None for row, n in zip(rows, top, strict=True)]


def _selected(logprobs: Tensor, selected: list[list[int] | None]) -> list[list[float] | None]:
    width = max(len(ids or ()) for ids in selected)
    if width == 0:
        return [None] * len(selected)
    padded = [(ids or []) + [0] * (width - len(ids or ())) for ids in selected]
    rows = logprobs.gather(1, torch.tensor(padded, device=logprobs.device)).tolist()
    return [row[: len(ids)] if ids else None for row, ids in zip(rows, selected, strict=True)]
