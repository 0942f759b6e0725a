"""HostDrafts: the drafts of a round on the host while the device still verifies them, so that masks are made beside
that."""

import numpy as np
import torch

from sglang.srt.model_executor.step_io import DraftTokens
from sglang.srt.speculative.draft_tree import Draft


class HostDrafts:
    """Of up to `most` requests with `nodes` nodes each, those of a `tree` with their parents."""

    def __init__(self, most: int, nodes: int, tree: bool, device: torch.device):
        on_gpu = device.type == "cuda"
        tables = [torch.zeros(most, nodes, dtype=torch.int64, pin_memory=on_gpu) for _ in range(1 + tree)]
        self._tokens, self._parents = (*tables, None)[:2]
        # External: each launch of a graph that has captured put() records it anew.
        self._there = torch.cuda.Event(external=True) if on_gpu else None

    def put(self, draft: Draft) -> None:
        """Enqueue their copy. A graph may capture it."""
        count = len(draft.tokens)
        self._tokens[:count].copy_(draft.tokens, non_blocking=True)
        if self._parents is not None:
            self._parents[:count].copy_(draft.parents, non_blocking=True)
        if self._there is not None:
            self._there.record()

    def wait(self, count: int) -> DraftTokens:
        """Those of the first `count` requests of the round that was launched last; valid until the next."""
        if self._there is not None:
            self._there.synchronize()
        tokens = self._tokens[:count].numpy()
        if self._parents is not None:
            return DraftTokens(tokens, self._parents[:count].numpy())
        return DraftTokens(tokens, np.broadcast_to(np.maximum(np.arange(tokens.shape[1]) - 1, 0), tokens.shape))
