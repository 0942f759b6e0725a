"""TreeNode and LruList, the parts of the prefix tree: a run of cached tokens, and an order of nodes by last use."""

from collections.abc import Hashable, Iterator

import numpy as np


class Link:
    """A node's place in one LruList; `newer` is None while the node is not in it, `used` stays."""

    __slots__ = ("node", "used", "older", "newer")

    def __init__(self, node: "TreeNode | None"):
        self.node = node
        self.used = 0  # clock of the last use
        self.older: Link | None = None
        self.newer: Link | None = None


class TreeNode:
    """The tokens [start, end) of every prefix that passes through here, with their slots.

    `swa` is None where the sliding slots were dropped (always, in a tree without sliding slots): a node's sliding part
    is there as a whole or not at all. A split makes a new node of the upper part, so a node keeps its `end` for life.
    """

    __slots__ = (
        "parent", "key", "children", "start", "end", "tokens", "full", "swa",
        "full_lock", "swa_lock", "full_link", "swa_link", "alive",
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
        self.full_link = Link(self)
        self.swa_link = Link(self)
        self.alive = True  # False once evicted

    def __len__(self) -> int:
        return self.end - self.start


class LruList:
    """Nodes from least to most recently used, by the clock in their links.

    Every change but add() is O(1); an OrderedDict could not insert beside a node. `tokens` is the sum of the lengths
    of its nodes.
    """

    def __init__(self) -> None:
        self._ring = Link(None)  # its newer neighbour is the oldest node, its older one the newest
        self.clear()

    def clear(self) -> None:
        """Forget the nodes, whose links are not reset: they must not be used again."""
        self._ring.older = self._ring.newer = self._ring
        self.tokens = 0

    def oldest(self) -> TreeNode | None:
        return self._ring.newer.node

    def __iter__(self) -> Iterator[TreeNode]:
        """From least to most recently used."""
        link = self._ring.newer
        while link is not self._ring:
            yield link.node
            link = link.newer

    def append(self, link: Link, now: int) -> None:
        """The node, not in the list so far, is used now."""
        link.used = now
        self._insert(link, self._ring)
        self.tokens += len(link.node)

    def add(self, link: Link, after_equals: bool) -> None:
        """Put a node in where its last use says; nodes used at the same time go before or after it.

        Takes as long as nodes were used since then.
        """
        before = self._ring
        while (other := before.older) is not self._ring:
            if other.used < link.used or (after_equals and other.used == link.used):
                break
            before = other
        self._insert(link, before)
        self.tokens += len(link.node)

    def remove(self, link: Link) -> None:
        link.older.newer, link.newer.older = link.newer, link.older
        link.older = link.newer = None
        self.tokens -= len(link.node)

    def touch(self, link: Link, now: int) -> None:
        """The node is used now, whether it is in the list or not."""
        link.used = now
        if link.newer is None:
            return
        link.older.newer, link.newer.older = link.newer, link.older
        link.newer = None
        self._insert(link, self._ring)

    def make_oldest(self, link: Link) -> None:
        """The node, in the list, goes before all others, as if it had never been used."""
        link.older.newer, link.newer.older = link.newer, link.older
        link.used, link.newer = 0, None
        self._insert(link, self._ring.newer)

    def add_upper(self, upper: Link, lower: Link, newer: bool) -> None:
        """A node of the list was split; its upper part joins as the next newer or the next older node."""
        self._insert(upper, lower.newer if newer else lower)

    @staticmethod
    def _insert(link: Link, before: Link) -> None:
        assert link.newer is None, f"node [{link.node.start}, {link.node.end}) is in the list already"
        link.older, link.newer = before.older, before
        before.older.newer = link
        before.older = link
