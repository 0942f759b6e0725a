"""Draft trees against a plain walk over Python objects."""

import math
import random
import sys

import pytest
import torch

from sglang.srt.speculative.draft_tree import Draft, TreeBuilder, accept, make_line
from sglang.srt.speculative.settings import SpeculationSettings
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=5, suite="base-a-test-cpu")

VOCAB, BATCH = 11, 3


def logits_after(path: tuple[int, ...], request: int) -> torch.Tensor:
    """A made-up drafter: its logits are a function of the path."""
    generator = torch.Generator().manual_seed(hash((request, *path)) % 2**31)
    return 2 * torch.randn(VOCAB, generator=generator, dtype=torch.float64)


def grow(steps: int, topk: int) -> TreeBuilder:
    builder = TreeBuilder(torch.arange(BATCH), topk)
    paths = [[()]] * BATCH
    for _ in range(steps):
        preferred = torch.stack([torch.stack([logits_after(p, b) for p in paths[b]]) for b in range(BATCH)])
        tokens, origin = builder.grow(preferred)
        paths = [
            [(*paths[b][o], t) for t, o in zip(tokens[b].tolist(), origin[b].tolist(), strict=True)]
            for b in range(BATCH)
        ]
    return builder


def expected_paths(request: int, steps: int, topk: int, nodes: int) -> set[tuple[int, ...]]:
    """The drafted nodes as paths of tokens, by the book."""
    candidates: dict[tuple[int, ...], float] = {}
    beams = [((), 0.0)]
    for _ in range(steps):
        fresh = []
        for path, score in beams:
            logprobs = logits_after(path, request).log_softmax(-1)
            best = sorted(range(VOCAB), key=lambda t: -logprobs[t].item())[:topk]
            fresh += [((*path, t), score + logprobs[t].item()) for t in best]
        candidates |= dict(fresh)
        beams = sorted(fresh, key=lambda item: -item[1])[:topk]
    return set(sorted(candidates, key=lambda path: -candidates[path])[: nodes - 1])


def paths_of(draft: Draft, request: int) -> list[tuple[int, ...]]:
    """Each node's drafted tokens from the root on, found by its parents."""
    found: list[tuple[int, ...]] = [()]
    for node in range(1, draft.tokens.shape[1]):
        parent = draft.parents[request, node].item()
        assert parent < node
        found.append((*found[parent], draft.tokens[request, node].item()))
    return found


@pytest.mark.parametrize("steps,topk,nodes", [(1, 3, 4), (2, 2, 4), (5, 3, 12), (5, 3, 40), (3, 4, 9), (4, 1, 5)])
def test_trees_hold_the_most_likely_paths(steps: int, topk: int, nodes: int):
    draft = grow(steps, topk).finish(nodes)
    assert paths_of(draft.cut(2), 1) == paths_of(draft, 1) and len(draft.cut(2).paths) == 2
    for b in range(BATCH):
        paths = paths_of(draft, b)
        assert set(paths[1:]) == expected_paths(b, steps, topk, nodes) and len(set(paths)) == nodes
        assert draft.tokens[b, 0] == b and draft.depths[b].tolist() == [len(p) for p in paths]
        for node, path in enumerate(paths):
            ancestors = [paths.index(path[:n]) for n in range(len(path) + 1)]
            assert draft.paths[b, node].tolist() == ancestors + [node] * (steps - len(path))
            assert draft.path_tokens()[b, node].tolist() == [*path] + [-1] * (steps - len(path))


def test_certain_tokens_keep_the_tree_whole():
    """Log-probabilities of exactly 0 give a child its parent's score; the parent must still come first."""
    builder = TreeBuilder(torch.zeros(1, dtype=torch.int64), 2)
    sure = torch.full((VOCAB,), -math.inf)
    sure[4] = 0.0
    for beams in (1, 2, 2, 2):
        builder.grow(sure.expand(1, beams, VOCAB))
    draft = builder.finish(5)
    assert draft.tokens[0].tolist() == [0, 4, 4, 4, 4] and draft.depths[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("steps,topk,nodes", [(5, 3, 12), (3, 2, 6), (2, 4, 15)])
def test_accept_follows_the_samples(steps: int, topk: int, nodes: int):
    draft = grow(steps, topk).finish(nodes)
    rng = random.Random(0)
    lengths = set()
    for _ in range(50):
        targets = torch.tensor([[rng.randrange(VOCAB) for _ in range(nodes)] for _ in range(BATCH)])
        for b in range(BATCH):  # lead some of them into the tree
            for node in rng.sample(range(1, nodes), nodes // 2):
                targets[b, draft.parents[b, node]] = draft.tokens[b, node]
        path, count = accept(draft, targets)
        for b in range(BATCH):
            paths, node, expected = paths_of(draft, b), 0, [0]
            while (*paths[node], targets[b, node].item()) in paths:
                node = paths.index((*paths[node], targets[b, node].item()))
                expected.append(node)
            assert count[b] == len(expected)
            assert path[b].tolist() == expected + [node] * (steps + 1 - len(expected))
            lengths.add(len(expected))
    assert lengths == set(range(1, steps + 2))


def test_a_line_is_a_tree_of_one_path():
    drafted = [torch.tensor([5, 6, 7]), torch.tensor([8, 9, 8]), torch.tensor([1, 2, 3])]
    line = make_line(torch.tensor([0, 1, 2]), drafted)
    parents = torch.tensor([0, 0, 1, 2]).expand(3, 4)
    paths = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]]).expand(3, 4, 4)
    tree = Draft(line.tokens, line.depths, 3, parents, paths)
    assert torch.equal(line.path_tokens(), tree.path_tokens())
    targets = torch.tensor([[5, 8, 1, 9], [6, 0, 2, 9], [0, 8, 3, 9]])
    for draft in (line, tree):
        path, count = accept(draft, targets)
        assert count.tolist() == [4, 2, 1]
        assert path.tolist() == [[0, 1, 2, 3], [0, 1, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    "numbers,message",
    [
        ((3, 1, 5), "with --speculative-eagle-topk 1 a draft has --speculative-num-steps \\+ 1 = 4 tokens"),
        ((5, 3, 5), "5 steps of topk 3 give 6 to 40"),
        ((5, 3, 41), "5 steps of topk 3 give 6 to 40"),
    ],
)
def test_numbers_that_do_not_fit(numbers: tuple[int, int, int], message: str):
    with pytest.raises(ValueError, match=message):
        SpeculationSettings(*numbers)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
