"""TreeNode and LruList, the parts of the prefix tree: a run of cached tokens, and an order of nodes by last use."""

from collections.abc import Iterator
from typing import Literal

import numpy as np


class TreeNode:
    """The tokens [start, end) of every prefix that passes through here, with their slots.

    `swa` is None where the sliding slots were dropped (always, in a tree without a sliding pool): a node's sliding part
    is there as a whole or not at all. A split makes a new node of the upper part, so a node keeps its `end` for life.
    """

    __slots__ = (
        "parent", "key", "children", "start", "end", "tokens", "full", "swa", "full_lock", "swa_lock", "alive",
        "full_older", "full_newer", "swa_older", "swa_newer",
    )  # fmt: skip

    def __init__(
        self, parent: "TreeNode | None", key: object, start: int, tokens: np.ndarray, full: np.ndarray, swa: np.ndarray | None
    ):
        self.parent = parent
        self.key = key  # in parent.children
        self.children: dict[object, TreeNode] = {}
        self.start = start
        self.end = start + len(tokens)
        self.tokens = tokens  # int64 [end - start]
        self.full = full  # int32 [end - start], owned by the tree
        self.swa = swa  # int32 [end - start], owned by the tree, or None
        self.full_lock = 0  # locked paths that pass through here; a parent's count is never below a child's
        self.swa_lock = 0  # locked paths whose last window covers this node
        self.alive = True  # False once evicted
        self.full_older: TreeNode | None = None
        self.full_newer: TreeNode | None = None
        self.swa_older: TreeNode | None = None
        self.swa_newer: TreeNode | None = None

    def __len__(self) -> int:
        return self.end - self.start


class LruList:
    """Nodes from least to most recently used, linked through their own fields: every change is O(1).

    `tokens` is the sum of the lengths of its nodes. An OrderedDict would do, but for insert_before/after.
    """

    def __init__(self, kind: Literal["full", "swa"]):
        self._older, self._newer = f"{kind}_older", f"{kind}_newer"
        # The ends of a ring: the sentinel's newer neighbour is the oldest node.
        self._sentinel = TreeNode(None, None, 0, np.zeros(0, np.int64), np.zeros(0, np.int32), None)
        self.clear()

    def clear(self) -> None:
        setattr(self._sentinel, self._older, self._sentinel)
        setattr(self._sentinel, self._newer, self._sentinel)
        self.tokens = 0

    def oldest(self) -> TreeNode | None:
        node = getattr(self._sentinel, self._newer)
        return None if node is self._sentinel else node

    def __contains__(self, node: TreeNode) -> bool:
        return getattr(node, self._older) is not None

    def __iter__(self) -> Iterator[TreeNode]:
        node = getattr(self._sentinel, self._newer)
        while node is not self._sentinel:
            yield node
            node = getattr(node, self._newer)

    def append(self, node: TreeNode) -> None:
        """`node` becomes the most recently used; it must not be in the list."""
        self._link(getattr(self._sentinel, self._older), node, self._sentinel)
        self.tokens += len(node)

    def remove(self, node: TreeNode) -> None:
        older, newer = getattr(node, self._older), getattr(node, self._newer)
        setattr(older, self._newer, newer)
        setattr(newer, self._older, older)
        setattr(node, self._older, None)
        setattr(node, self._newer, None)
        self.tokens -= len(node)

    def touch(self, node: TreeNode) -> None:
        """Make `node`, which is in the list, the most recently used."""
        self.remove(node)
        self.append(node)

    def insert_upper(self, upper: TreeNode, lower: TreeNode, upper_is_newer: bool) -> None:
        """`lower`, in the list, was split: its tokens above went to `upper`, which joins beside it."""
        if upper_is_newer:
            self._link(lower, upper, getattr(lower, self._newer))
        else:
            self._link(getattr(lower, self._older), upper, lower)

    def _link(self, older: TreeNode, node: TreeNode, newer: TreeNode) -> None:
        assert getattr(node, self._older) is None, f"node [{node.start}, {node.end}) is in the list already"
        setattr(older, self._newer, node)
        setattr(node, self._older, older)
        setattr(node, self._newer, newer)
        setattr(newer, self._older, node)
