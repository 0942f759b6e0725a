"""check_tree() goes through a whole prefix tree and raises where its books are wrong; it changes nothing."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from sglang.srt.mem_cache.arena import SlotAllocator
from sglang.srt.mem_cache.radix_node import TreeNode

NODES_A_PART = 64  # about a millisecond


class Owners:
    """How many nodes have each slot of a kind."""

    def __init__(self, name: str, pool: SlotAllocator):
        self.name, self.pool = name, pool
        self.counts = np.zeros((pool.arena.num_pages + 1) * pool.per_page, dtype=np.uint8)
        self.cached = self.locked = 0

    def add(self, slots: np.ndarray, locked: bool) -> None:
        np.add.at(self.counts, slots.astype(np.intp), np.uint8(1))
        free = slots[self.pool.is_free(slots)]
        assert not len(free), f"{self.name} pool: {len(free)} slots are cached and free: {free[:8]}"
        self.cached += len(slots)
        self.locked += len(slots) if locked else 0

    def check(self, cached: int, locked: int) -> None:
        twice = np.flatnonzero(self.counts > 1)
        assert not len(twice), f"{self.name} pool: slots cached twice: {twice[:8]}"
        found = self.cached, self.locked
        assert found == (cached, locked), f"{self.name} slots cached and locked: {found}, counted {cached}, {locked}"


def check_tree(tree) -> Iterator[None]:
    """`tree` is a RadixCache, which must stay as it is until the end. Yields after each millisecond or so."""
    full, swa = Owners("full", tree.full), Owners("sliding", tree.swa) if tree.swa else None
    windows: Counter[TreeNode] = Counter()
    queued = 0
    nodes = list(tree._root.children.values())
    for index, node in enumerate(nodes):
        nodes.extend(node.children.values())
        _check_node(node, tree._root)
        full.add(node.full, node.full_lock > 0)
        if node.swa is not None:
            swa.add(node.swa, node.swa_lock > 0)
        for part in tree._tail(node) if node.is_end else ():
            windows[part] += 1
            assert part.swa is not None or part.end <= node.end - (tree.window - 1), (
                f"{_name(node)} keeps its window, but {_name(part)} is dropped"
            )
        assert node.entry or tree._price(node) is None, f"{_name(node)} can be given up, but is not queued"
        queued += node.entry is not None
        if index % NODES_A_PART == 0:
            yield
    full.check(tree._cached_full, tree._locked_full)
    yield
    if swa is not None:
        swa.check(tree._cached_swa, tree._locked_swa)
        yield
    wrong = [node for node in nodes if node.windows != windows[node]]
    assert not wrong, f"{_name(wrong[0])} counts {wrong[0].windows} windows, not {windows[wrong[0]]}"
    assert queued == len(list(tree._queue)), f"{queued} nodes say they are queued, {len(list(tree._queue))} are"


def _name(node: TreeNode) -> str:
    return f"node [{node.start}, {node.end})"


def _check_node(node: TreeNode, root: TreeNode) -> None:
    parent = node.parent
    key = node.key[1] if parent is root else node.key
    assert node.alive and parent.children[node.key] is node and key == node.tokens[0], (
        f"{_name(node)} is not under its key"
    )
    assert node.start == parent.end < node.end, f"{_name(node)} follows {_name(parent)}"
    sizes = [len(node.tokens), len(node.full), len(node) if node.swa is None else len(node.swa)]
    assert sizes == [len(node)] * 3, f"{_name(node)} has {sizes} tokens, full and sliding slots"
    locks = node.full_lock, node.swa_lock
    assert 0 <= locks[1] <= locks[0], f"{_name(node)} is locked {locks[0]} times, sliding {locks[1]}"
    assert parent is root or parent.full_lock >= locks[0], f"{_name(node)} is locked more often than {_name(parent)}"
