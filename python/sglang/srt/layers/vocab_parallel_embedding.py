"""Token embedding, its rows split among the ranks.

e = E[id] * s, with s rounded to the weight's dtype first (2816^0.5 is 53.0 in bfloat16).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sglang.srt.distributed.tensor_parallel import SINGLE, TensorParallel
from sglang.srt.layers.parameters import parameter


def scaled_embedding_reference(ids: Tensor, weight: Tensor, scale: float) -> Tensor:
    """ids [T], weight [V, D] -> [T, D]; `scale` is already rounded to the weight's dtype. Exact op."""
    return F.embedding(ids, weight) * scale


def scaled_embedding(ids: Tensor, weight: Tensor, scale: float) -> Tensor:
    """See scaled_embedding_reference."""
    return scaled_embedding_reference(ids, weight, scale)


class VocabEmbedding(nn.Module):
    """Table [vocab_size, dim]; `scale` None leaves the rows as they are. Ids must be below vocab_size."""

    def __init__(self, vocab_size: int, dim: int, scale: float | None = None, tp: TensorParallel = SINGLE):
        super().__init__()
        self.tp = tp
        share = tp.share(vocab_size, "the vocabulary")
        self.weight = parameter(share, dim)
        ((self.first, self.end),) = share.ranges
        # made on the CPU whatever the default device is: item() of a device tensor would wait for the device
        self.scale = None if scale is None else torch.tensor(scale, dtype=self.weight.dtype, device="cpu").item()

    def forward(self, ids: Tensor) -> Tensor:  # [T] -> [T, dim], the same on every rank
        if self.tp.size == 1:
            return self._rows(ids)
        mine = (ids >= self.first) & (ids < self.end)
        # one rank adds a row and the others zeros, so the sum is exact
        return self.tp.all_reduce(self._rows((ids - self.first) * mine) * mine[:, None])

    def _rows(self, ids: Tensor) -> Tensor:
        if self.scale is None:
            return F.embedding(ids, self.weight)
        return scaled_embedding(ids, self.weight, self.scale)
