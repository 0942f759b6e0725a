"""Log-probabilities of chosen, best and asked-for tokens, as host lists ready for the protocol."""

import torch
from torch import Tensor

TopList = list[tuple[float, int]]


def token_logprobs(
    logits: Tensor, ids: Tensor, top: list[int], selected: list[list[int] | None]
) -> tuple[list[float], list[TopList | None], list[list[float] | None]]:
    """For each row of `logits` [N, V]: log p of `ids` [N], the `top[i]` best (log p, id) pairs, best first and equal
    ones by id, and log p of the `selected[i]` ids. None where a row asks for no best or no selected ones."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    values = logprobs.gather(1, ids[:, None]).squeeze(1).tolist()
    return values, _best(logprobs, top), _selected(logprobs, selected)


def _best(logprobs: Tensor, top: list[int]) -> list[TopList | None]:
    count = min(max(top, default=0), logprobs.shape[1])
    if count == 0:
        return [None] * len(top)
    # topk leaves the order of equal values open, a stable sort does not
    ordered, ids = torch.sort(logprobs, dim=-1, descending=True, stable=True)
    pairs = zip(ordered[:, :count].tolist(), ids[:, :count].tolist(), strict=True)
    rows = [list(zip(values, tokens, strict=True)) for values, tokens in pairs]
    return [rows[i][:n] if n else None for i, n in enumerate(top)]


def _selected(logprobs: Tensor, selected: list[list[int] | None]) -> list[list[float] | None]:
    result: list[list[float] | None] = [None] * len(selected)
    for i, ids in enumerate(selected):
        if ids:
            result[i] = logprobs[i, torch.tensor(ids, device=logprobs.device)].tolist()
    return result
