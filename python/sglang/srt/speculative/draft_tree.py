"""Drafts: the tokens a round lets the target verify, and which of them it takes. Tensors only; nothing waits for them.

A draft of a request has N nodes. Node 0 is the request's newest token, known but without KV; the others are drafted,
each a guess of what follows its parent. A line has one node at each depth; a tree offers several tokens in some places
and spends its nodes on the paths the drafter believes in most.

The target samples a token at every node. From the root on, the child that equals the sample is accepted, and the sample
of the last accepted node is one more token. What the target samples at a node does not depend on the drafts, so the
tokens are those it would have made alone, greedy or not.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draft:
    """Drafts of B requests. Parents come before their children; the root's parent is itself."""

    tokens: Tensor  # [B, N] int64
    depths: Tensor  # [B, N] int64, 0 at the root and up to `steps`
    steps: int
    parents: Tensor | None = None  # [B, N] int64; None: a line, and so below
    paths: Tensor | None = (
        None  # [B, N, steps + 1] int64: the node's ancestors from the root on, then itself to the end
    )

    def lengths(self, before: Tensor) -> Tensor:
        """Tokens each node sees, itself included, where `before` [B] tokens precede the drafts: [B * N]."""
        return (before[:, None] + self.depths + 1).flatten()

    def cut(self, requests: int) -> "Draft":
        """The first `requests` drafts."""
        tables = (None if table is None else table[:requests] for table in (self.parents, self.paths))
        return Draft(self.tokens[:requests], self.depths[:requests], self.steps, *tables)

    def path_tokens(self) -> Tensor:
        """Drafted tokens up to each node, itself included: [B, N, steps], -1 after the node's own."""
        batch, nodes = self.tokens.shape
        if self.paths is None:
            tokens = self.tokens[:, None, 1:].expand(batch, nodes, self.steps)
        else:
            tokens = self.tokens[:, None].expand(-1, nodes, -1).gather(2, self.paths[:, :, 1:])
        depth = torch.arange(1, self.steps + 1, device=tokens.device)
        return tokens.masked_fill(depth > self.depths[:, :, None], -1)


def make_line(newest: Tensor, drafted: list[Tensor]) -> Draft:
    """`newest` [B], then the token [B] of each step."""
    tokens = torch.stack([newest, *drafted], 1)
    depths = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    return Draft(tokens, depths, len(drafted))


class TreeBuilder:
    """Grows trees of B requests by one depth a step and keeps the most likely nodes.

    A step looks at `topk` beams, the best nodes of the depth before (the first step at the root alone), and adds the
    `topk` best children of each as candidates. A node's score is the drafter's log-probability of its whole path, so
    no child scores above its parent, and the best N - 1 candidates (the earlier one of equals) hang together.
    """

    def __init__(self, newest: Tensor, topk: int):
        self.newest, self.topk = newest, topk
        self._tokens: list[Tensor] = []  # a step's candidates, [B, topk] or [B, topk * topk]
        self._scores: list[Tensor] = []
        self._parents: list[Tensor] = []  # index among all candidates, -1 for the root
        self._beams: Tensor | None = None  # [B, topk] candidates of the last step, as indices among its own
        self._count = 0

    def grow(self, preferred: Tensor) -> tuple[Tensor, Tensor]:
        """One step. `preferred` [B, beams, V]: logits after each beam (one beam, the root, in the first step).
        Returns the new beams: their tokens [B, topk] and which old beam each comes from [B, topk]."""
        logprobs, tokens = preferred.log_softmax(-1).topk(self.topk)  # [B, beams, topk]
        if self._beams is None:
            parents = torch.full_like(tokens[:, 0], -1)
        else:
            logprobs = logprobs + self._scores[-1].gather(1, self._beams)[:, :, None]
            first = self._count - self._scores[-1].shape[1]
            parents = (self._beams + first).repeat_interleave(self.topk, 1)
        tokens, scores = tokens.flatten(1), logprobs.flatten(1)
        self._tokens.append(tokens)
        self._scores.append(scores)
        self._parents.append(parents)
        self._count += tokens.shape[1]
        self._beams = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, : self.topk]
        return tokens.gather(1, self._beams), self._beams // self.topk

    def finish(self, nodes: int) -> Draft:
        """The trees of `nodes` nodes each, at most one more than there are candidates."""
        steps = len(self._tokens)
        scores, parents = torch.cat(self._scores, 1), torch.cat(self._parents, 1)
        chosen = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, : nodes - 1].sort(1).values
        tokens = torch.cat([self.newest[:, None], torch.cat(self._tokens, 1).gather(1, chosen)], 1)
        parent = parents.gather(1, chosen)
        parent = torch.where(parent < 0, 0, torch.searchsorted(chosen, parent) + 1)
        parent = torch.nn.functional.pad(parent, (1, 0))  # the root's
        own = torch.arange(nodes, device=tokens.device).expand_as(parent)
        up = [own]  # the node, its parent, its parent's, ...; the root repeats
        for _ in range(steps):
            up.append(parent.gather(1, up[-1]))
        up = torch.stack(up, 2)
        depths = (up[:, :, :-1] != 0).sum(2)
        depth = torch.arange(steps + 1, device=tokens.device)
        paths = up.gather(2, (depths[:, :, None] - depth).clamp(min=0))
        return Draft(tokens, depths, steps, parent, paths)


def accept(draft: Draft, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Which nodes are accepted, given what the target samples at each, `targets` [B, N].

    Returns the accepted nodes [B, steps + 1], root first, the last repeated to the end; and how many they are [B], at
    least 1. The sample of each accepted node is an output token.
    """
    batch, nodes = targets.shape
    if draft.parents is None:
        correct = (draft.tokens[:, 1:] == targets[:, :-1]).int().cumprod(1).sum(1)
        return torch.minimum(torch.arange(nodes, device=targets.device), correct[:, None]), correct + 1
    node = targets.new_zeros(batch, 1)
    path, count = [node], torch.ones_like(node[:, 0])
    is_child = torch.arange(nodes, device=targets.device) > 0
    for _ in range(draft.steps):
        found = is_child & (draft.parents == node) & (draft.tokens == targets.gather(1, node))  # one at most
        count = count + found.any(1)
        node = torch.where(found.any(1, keepdim=True), found.int().argmax(1, keepdim=True), node)
        path.append(node)
    return torch.cat(path, 1), count
