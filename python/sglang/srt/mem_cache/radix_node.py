"""TreeNode and EvictionQueue, the parts of the prefix tree: a run of cached tokens, and what to give up next."""

import heapq
from collections.abc import Callable, Hashable, Iterator

import numpy as np

Price = tuple[float, int, int]  # what it saves, and of equals the one used least recently, its deepest node, first


class TreeNode:
    """The tokens [start, end) of every prefix that passes through here, with their slots.

    `swa` is None where the sliding slots were dropped (always, in a tree without sliding slots): a node's sliding part
    is there as a whole or not at all. A split makes a new node of the upper part, so a node keeps its `end` for life.
    """

    __slots__ = (
        "parent", "key", "children", "start", "end", "tokens", "full", "swa", "full_lock", "swa_lock",
        "is_end", "windows", "hits", "turns", "passed", "lot", "used", "level", "entry", "alive",
    )  # fmt: skip

    def __init__(
        self,
        parent: "TreeNode | None",
        key: Hashable,
        start: int,
        tokens: np.ndarray,
        full: np.ndarray,
        swa: np.ndarray | None,
    ):
        self.parent = parent
        self.key = key  # in parent.children
        self.children: dict[Hashable, TreeNode] = {}
        self.start = start
        self.end = start + len(tokens)
        self.tokens = tokens  # int64 [end - start]
        self.full = full  # int32 [end - start], owned by the tree
        self.swa = swa  # int32 [end - start], owned by the tree, or None
        self.full_lock = 0  # locked paths that pass through here, so never below a child's count
        self.swa_lock = 0  # locked paths whose last window covers this node
        self.is_end = False  # the window before `end` is kept, so that somebody can go on here
        self.windows = 0  # kept windows that cover this node
        self.hits = 0  # how often a prefix ended or parted from others here again
        self.turns = 0  # how often those above went on to here
        self.passed = False  # somebody has gone on beyond the end that follows
        self.lot = 0.0  # in [0, 1): the larger, the longer it stays
        self.used = 0  # clock of the last use
        self.level = 0.0  # the tree's level at that time
        self.entry: tuple[Price, int] | None = None  # in the queue
        self.alive = True  # False once evicted

    def __len__(self) -> int:
        return self.end - self.start


class EvictionQueue:
    """Nodes that can be given up, by price, cheapest first; a change is O(log n).

    `price` says what a node costs now, None where it can't be given up. Prices mostly rise, as nodes are used, so they
    are looked at again when a node's turn comes. put() is needed where a node becomes something to give up, or cheaper.
    """

    def __init__(self, price: Callable[[TreeNode], Price | None]):
        self._price = price
        self._heap: list[tuple[Price, int, TreeNode]] = []
        self._numbers = 0  # of entries, so that nodes are never compared
        self._valid = 0

    def put(self, node: TreeNode) -> None:
        price = self._price(node)
        if price is None or (node.entry is not None and node.entry[0] <= price):
            return
        self._valid += node.entry is None
        self._numbers += 1
        node.entry = price, self._numbers
        heapq.heappush(self._heap, (*node.entry, node))
        if len(self._heap) > 2 * self._valid + 64:
            self._heap = [item for item in self._heap if item[2].entry == item[:2]]
            heapq.heapify(self._heap)

    def remove(self, node: TreeNode) -> None:
        """Forget the node, queued or not."""
        self._valid -= node.entry is not None
        node.entry = None

    def pop(self, wanted: Callable[[TreeNode], bool]) -> TreeNode | None:
        """The cheapest node that is `wanted`, queued no longer; None where there is none."""
        aside, found = [], None
        while self._heap and found is None:
            item = heapq.heappop(self._heap)
            price, number, node = item
            if node.entry != (price, number):
                continue
            now = self._price(node)
            if now is not None and now <= price and not wanted(node):
                aside.append(item)
                continue
            self.remove(node)
            if now is not None and now <= price:
                found = node
            else:
                self.put(node)
        for item in aside:
            heapq.heappush(self._heap, item)
        return found

    def clear(self) -> None:
        """Forget all nodes, which must not be used again."""
        self._heap.clear()
        self._valid = 0

    def __iter__(self) -> Iterator[TreeNode]:
        """In no order."""
        return (item[2] for item in self._heap if item[2].entry == item[:2])
