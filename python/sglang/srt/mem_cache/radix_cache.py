"""RadixCache: the tree of cached prefixes. It owns the slots of its tokens and says which prefixes can be used again.

A model with sliding layers keeps two slots a token. The full one lives as long as the node; the sliding part of a node
may be dropped alone. With a window of W tokens (the query's own included), a prefix of length L is reusable where the
sliding slots of all tokens in [max(0, L - (W - 1)), L) are there. The *tail* of a prefix is the last W tokens: one more
than reuse needs, because the same prompt asked again may only use all its tokens but one.

Two orders of use decide what goes first. A match or insert refreshes the full order along its path, parents after
children, so the oldest node is always a leaf; it refreshes the sliding order in the tail only, deeper nodes last, so
that of one branch the old parts go before the tail that keeps the branch reusable. Locked nodes are in neither order,
so that the orders list exactly what can be evicted; they keep the time of their last use. A leaf without its sliding
part can serve nobody, so it goes as a whole, and so do the ancestors that are left as such leaves.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sglang.srt.mem_cache.arena import SlotAllocator
from sglang.srt.mem_cache.radix_node import LruList, TreeNode

NO_SLOTS = np.zeros(0, dtype=np.int32)
NO_TOKENS = np.zeros(0, dtype=np.int64)


class Anchor:
    """The end of a cached prefix of `length` tokens: somewhere in `node` until a lock splits the node there."""

    __slots__ = ("node", "length")

    def __init__(self, node: TreeNode, length: int):
        self.node = node
        self.length = length


@dataclass(slots=True)
class Match:
    """A reusable prefix. The slots stay the tree's: they are safe to use once `node` is locked, before any evict().

    The last min(length, window - 1) of `swa_slots` are live; others may be 0, or be evicted although locked.
    `held` tokens are cached, `length` of them reusable: beyond those the sliding window before the last is gone.
    """

    length: int
    held: int
    node: Anchor
    full_slots: np.ndarray  # int32 [length]
    swa_slots: np.ndarray  # int32 [length], 0 where dropped


@dataclass(slots=True)
class Inserted:
    """Where the inserted tokens are now."""

    node: Anchor
    full_slots: np.ndarray  # int32 [n]
    swa_slots: np.ndarray  # int32 [n], 0 where dropped


class RadixCache:
    """Prefixes over full slots and, with a sliding `window` in tokens, sliding slots. `extra_key` keeps prefixes apart.

    Slots of locked parts are held, all others the tree has are cached.
    With `enabled` False nothing is kept: match() gives 0 tokens and insert() frees the caller's slots.
    """

    def __init__(self, full: SlotAllocator, swa: SlotAllocator | None, window: int | None, enabled: bool = True):
        if (swa is None) != (window is None):
            raise ValueError(f"sliding slots and a window come together, got {swa} and {window}")
        if window is not None and window < 2:
            raise ValueError(f"window {window} must be at least 2: a query and one token before it")
        self.full = full
        self.swa = swa
        self.window = window
        self.enabled = enabled
        self._full_lru = LruList()
        self._swa_lru = LruList()
        self._clear()

    def _clear(self) -> None:
        self._root = TreeNode(None, None, 0, NO_TOKENS, NO_SLOTS, None)
        self._full_lru.clear()
        self._swa_lru.clear()
        self._cached_full = self._cached_swa = 0
        self._clock = 0  # ticks once a match or insert

    # ---- reading ----

    def match(self, ids: Sequence[int] | np.ndarray, extra_key: str | None = None) -> Match:
        """The longest reusable prefix of `ids` [n]; counts as a use of it. Splits and locks nothing."""
        if not self.enabled:
            return Match(0, 0, Anchor(self._root, 0), NO_SLOTS, NO_SLOTS)
        self._clock += 1
        path, held = self._walk(_as_ids(ids), extra_key)
        path, length = (path, held) if self.swa is None else self._reusable(path, held)
        self._touch(path, length)
        node = path[-1] if path else self._root
        return Match(length, held, Anchor(node, length), *self._slots(path, length))

    def evictable(self) -> tuple[int, int]:
        """Full and sliding slots that evict() could free now."""
        return self._full_lru.tokens, self._swa_lru.tokens

    def cached(self) -> tuple[int, int]:
        """Full and sliding slots that the tree owns."""
        return self._cached_full, self._cached_swa

    def _walk(self, ids: np.ndarray, extra_key: str | None) -> tuple[list[TreeNode], int]:
        """The nodes that hold the longest cached prefix of `ids`, and its length, which may end inside the last."""
        path: list[TreeNode] = []
        node, pos, end = self._root, 0, len(ids)
        while pos < end:
            node = node.children.get(self._key(ids, pos, extra_key))
            if node is None:
                break
            path.append(node)
            count = min(len(node), end - pos)
            differs = node.tokens[:count] != ids[pos : pos + count]
            first = int(differs.argmax())
            if differs[first]:
                return path, pos + first
            pos += count
        return path, pos

    def _key(self, ids: np.ndarray, pos: int, extra_key: str | None) -> Hashable:
        """Key of a child: its first token, with the extra key at the root."""
        return int(ids[pos]) if pos else (extra_key, int(ids[pos]))

    def _reusable(self, path: list[TreeNode], length: int) -> tuple[list[TreeNode], int]:
        """Cut a walk back to where a whole window of sliding slots ends.

        Within a node a longer prefix needs no more of what is above the node, so its furthest token decides.
        """
        reusable = count = live_from = 0
        for index, node in enumerate(path):
            if node.swa is None:
                live_from = node.end
                continue
            end = min(node.end, length)
            if live_from <= max(0, end - (self.window - 1)):
                reusable, count = end, index + 1
        return path[:count], reusable

    def _slots(self, path: list[TreeNode], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Slots of the first `length` tokens along `path`, as new arrays."""
        if not path:
            return NO_SLOTS, NO_SLOTS
        full = np.concatenate([node.full for node in path])[:length]
        swa = np.zeros(length, dtype=np.int32)
        for node in path:
            if node.swa is not None:
                end = min(node.end, length)
                swa[node.start : end] = node.swa[: end - node.start]
        return full, swa

    def _touch(self, path: list[TreeNode], length: int) -> None:
        """A prefix is used now. Nodes that are locked remember it for when they are not.

        A node that only reaches into the tail is left to lock() and insert(), which split it there.
        """
        windows, window_start = [], self._tail_start(length)
        for node in reversed(path):
            self._full_lru.touch(node.full_link, self._clock)
            if len(node.children) > 1:
                window_start = self._tail_start(node.end)
            if node.start >= window_start and node.swa is not None:
                windows.append(node)
        for node in reversed(windows):
            self._swa_lru.touch(node.swa_link, self._clock)

    def _tail_start(self, length: int) -> int:
        """Where the last window of a prefix begins; `length` itself without sliding slots."""
        return length if self.window is None else max(0, length - self.window)

    # ---- locking ----

    def lock(self, anchor: Anchor) -> None:
        """Keep a prefix: all its full slots, and the sliding slots of its tail, which are used now. Locks add up.

        `anchor` is from match() or insert(), with no evict() in between. Raises AssertionError when it is gone.
        """
        node = anchor.node
        assert node.alive, f"the prefix of {anchor.length} tokens was evicted before it was locked"
        while node.start >= anchor.length and node is not self._root:
            node = node.parent  # the node was split since
        if anchor.length < node.end:
            node = self._split(node, anchor.length)
        anchor.node = node
        if self.swa is not None:
            for part in self._tail(node):
                assert part.swa is not None or part.end <= node.end - (self.window - 1), (
                    f"locking {node.end} tokens, but sliding slots [{part.start}, {part.end}) are gone"
                )
                part.swa_lock += 1
                part.swa_link.used = self._clock
                if part.swa_lock == 1 and part.swa is not None:
                    self._swa_lru.remove(part.swa_link)
                    self.swa.hold(part.swa)
        while node is not self._root:
            node.full_lock += 1
            if node.full_lock == 1:
                self._full_lru.remove(node.full_link)
                self.full.hold(node.full)
            node = node.parent

    def release_swa(self, anchor: Anchor) -> None:
        """Give up the sliding part of one lock early; its unlock() then says swa_released=True."""
        if self.swa is None:
            return
        for part in self._tail(anchor.node):
            part.swa_lock -= 1
            assert part.swa_lock >= 0, f"[{part.start}, {part.end}) of the sliding part unlocked more than locked"
            if part.swa_lock == 0 and part.swa is not None:
                self._swa_lru.add(part.swa_link, after_equals=False)
                self.swa.cache(part.swa)

    def unlock(self, anchor: Anchor, swa_released: bool = False) -> None:
        """Take one lock() back. That is no use of the prefix: it goes where its last match or insert puts it."""
        if not swa_released:
            self.release_swa(anchor)
        node = anchor.node
        while node is not self._root:
            node.full_lock -= 1
            assert node.full_lock >= 0, f"[{node.start}, {node.end}) unlocked more than locked"
            if node.full_lock == 0:
                self._full_lru.add(node.full_link, after_equals=True)
                self.full.cache(node.full)
            node = node.parent
        self._prune(anchor.node)

    def _tail(self, node: TreeNode) -> list[TreeNode]:
        """Nodes of the tail of the prefix that ends with `node`, deepest first; splits the one where it begins.

        Nodes are never joined, so the tail is the same tokens, whole nodes again, when the lock is taken back.
        """
        start = self._tail_start(node.end)
        parts = []
        while node.end > start:
            if node.start < start:
                self._split(node, start)
            parts.append(node)
            node = node.parent
        return parts

    # ---- growing ----

    def insert(
        self,
        ids: Sequence[int] | np.ndarray,
        extra_key: str | None,
        full_slots: np.ndarray,
        swa_slots: np.ndarray,
        owned_from: int,
    ) -> Inserted:
        """The tree takes over the caller's held slots of positions [owned_from, n), where n = len(ids).

        Positions below `owned_from` are the tree's, from a match whose lock the caller still holds; their slots are
        not looked at. `swa_slots` is 0 where the caller gave the slot back. Duplicates of what the tree has are freed,
        but where the tree has dropped the sliding part it takes the caller's. Nothing is locked by this.
        """
        ids = _as_ids(ids)
        n = len(ids)
        assert 0 <= owned_from <= n, f"owned from {owned_from} of {n} tokens"
        assert len(full_slots) >= n and len(swa_slots) >= n, f"{len(full_slots)}, {len(swa_slots)} slots, {n} tokens"
        if not self.enabled:
            self._free(full_slots[owned_from:n], swa_slots[owned_from:n])
            return Inserted(Anchor(self._root, 0), NO_SLOTS, NO_SLOTS)

        self._clock += 1
        path, held = self._walk(ids, extra_key)
        assert held >= owned_from, f"the caller's first {owned_from} tokens should be cached, {held} are"
        node = path[-1] if path else self._root
        if held < node.end:
            path[-1] = node = self._split(node, held)
        if owned_from < held:
            self.full.free(full_slots[owned_from:held])
            if self.swa is not None:
                for part in path:
                    self._merge_swa(part, swa_slots, owned_from)
        branch = node
        for start, end, live in self._runs(swa_slots, held, n):
            node = self._add_child(
                node,
                self._key(ids, start, extra_key),
                ids[start:end].copy(),
                full_slots[start:end].copy(),
                swa_slots[start:end].copy() if live else None,
            )
        if self.swa is not None:
            self._tail(node)  # part what is before the tail from it, to be dropped alone
            self._spend_first(node, branch)
        path = self._path(node)
        self._touch(path, n)
        return Inserted(Anchor(node, n), *self._slots(path, n))

    def _spend_first(self, end: TreeNode, branch: TreeNode) -> None:
        """Of the sliding slots that this insert brought only two windows will be asked for: the last one, where `end`
        ends, and that at `branch`, where others may leave this prefix. The rest goes first."""
        kept = {id(part) for part in (*self._tail(end), *self._tail(branch))}
        for node in self._path(end):
            if (
                node.swa_link.used == self._clock
                and node.swa is not None
                and id(node) not in kept
                and not node.swa_lock
            ):
                self._swa_lru.make_oldest(node.swa_link)

    def _merge_swa(self, node: TreeNode, swa_slots: np.ndarray, owned_from: int) -> None:
        """The caller owns `swa_slots` from `owned_from` on: revive with them what `node` dropped, free the others."""
        start, end = max(node.start, owned_from), node.end
        if start >= end:
            return
        if node.swa is not None:
            self.swa.free(swa_slots[start:end])
            return
        for run_start, run_end, live in self._runs(swa_slots, start, end):
            if not live:
                continue
            if node.start < run_start:
                self._split(node, run_start)
            part = self._split(node, run_end) if run_end < node.end else node
            part.swa = swa_slots[run_start:run_end].copy()
            self._cached_swa += len(part)
            part.swa_link.used = self._clock
            if part.swa_lock == 0:
                self._swa_lru.append(part.swa_link, self._clock)
                self.swa.cache(part.swa)

    def _runs(self, swa_slots: np.ndarray, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Runs (start, end, live) of [start, end): with sliding slots or without."""
        if start >= end:
            return
        live = swa_slots[start:end] != 0 if self.swa is not None else np.zeros(end - start, dtype=bool)
        changes = (np.flatnonzero(live[1:] != live[:-1]) + (start + 1)).tolist()
        for run_start, run_end in zip([start, *changes], [*changes, end], strict=True):
            yield run_start, run_end, bool(live[run_start - start])

    def _add_child(
        self, parent: TreeNode, key: Hashable, tokens: np.ndarray, full: np.ndarray, swa: np.ndarray | None
    ) -> TreeNode:
        node = TreeNode(parent, key, parent.end, tokens, full, swa)
        parent.children[key] = node
        self._cached_full += len(node)
        self._full_lru.append(node.full_link, self._clock)
        self.full.cache(full)
        if swa is not None:
            self._cached_swa += len(node)
            self._swa_lru.append(node.swa_link, self._clock)
            self.swa.cache(swa)
        return node

    def _split(self, node: TreeNode, at: int) -> TreeNode:
        """Part `node` at position `at`; returns the new upper part. Locks and places in the orders hold for both."""
        assert node.start < at < node.end, f"split [{node.start}, {node.end}) at {at}"
        k = at - node.start
        swa = None if node.swa is None else node.swa[:k]
        upper = TreeNode(node.parent, node.key, node.start, node.tokens[:k], node.full[:k], swa)
        upper.full_lock, upper.swa_lock = node.full_lock, node.swa_lock
        upper.full_link.used, upper.swa_link.used = node.full_link.used, node.swa_link.used
        node.parent.children[node.key] = upper
        node.parent = upper
        node.start = at
        node.tokens, node.full = node.tokens[k:], node.full[k:]
        node.swa = None if swa is None else node.swa[k:]
        node.key = int(node.tokens[0])
        upper.children[node.key] = node
        if not node.full_lock:
            self._full_lru.add_upper(upper.full_link, node.full_link, newer=True)
        if swa is not None and not node.swa_lock:
            self._swa_lru.add_upper(upper.swa_link, node.swa_link, newer=False)
        return upper

    def _path(self, node: TreeNode) -> list[TreeNode]:
        path = []
        while node is not self._root:
            path.append(node)
            node = node.parent
        return path[::-1]

    # ---- shrinking ----

    def evict(self, full: int, swa: int) -> tuple[int, int]:
        """Free at least `full` and `swa` slots if that many are evictable; returns how many of each were freed.

        Full slots go by whole leaves, least recently used first. Sliding slots go by nodes in the sliding order: a node
        longer than a window first gives what lies before its last window; an inner node stays without its sliding part.
        """
        before_full, before_swa = self._cached_full, self._cached_swa
        while before_full - self._cached_full < full and (node := self._full_lru.oldest()):
            self._remove_leaf(node)
        while before_swa - self._cached_swa < swa and (node := self._swa_lru.oldest()):
            self._evict_swa(node)
        return before_full - self._cached_full, before_swa - self._cached_swa

    def evict_oldest(self) -> bool:
        """Free what was used least recently, a leaf or a sliding part; False when nothing is left to evict."""
        full, swa = self._full_lru.oldest(), self._swa_lru.oldest()
        if swa is not None and (full is None or swa.swa_link.used <= full.full_link.used):
            self._evict_swa(swa)
        elif full is not None:
            self._remove_leaf(full)
        return full is not None or swa is not None

    def _evict_swa(self, node: TreeNode) -> None:
        tail_start = self._tail_start(node.end)
        if node.start < tail_start:
            node = self._split(node, tail_start)
        if node.children or node.full_lock:
            self._drop_swa(node)
        else:
            self._remove_leaf(node)

    def _drop_swa(self, node: TreeNode) -> None:
        self._swa_lru.remove(node.swa_link)
        self._cached_swa -= len(node)
        self.swa.evict(node.swa)
        node.swa = None

    def _remove_leaf(self, node: TreeNode) -> None:
        """Free an unlocked leaf as a whole, then the ancestors that serve nobody any more."""
        self._remove(node)
        self._prune(node.parent)

    def _prune(self, node: TreeNode) -> None:
        """Remove `node`, and then its ancestors, while they are unlocked leaves in which no prefix can end."""
        while self.swa is not None and node is not self._root:
            if node.swa is not None or node.children or node.full_lock:
                break
            self._remove(node)
            node = node.parent

    def _remove(self, node: TreeNode) -> None:
        assert not node.children and not node.full_lock, f"[{node.start}, {node.end}) is no unlocked leaf"
        if node.swa is not None:
            self._drop_swa(node)
        self._full_lru.remove(node.full_link)
        self._cached_full -= len(node)
        self.full.evict(node.full)
        del node.parent.children[node.key]
        node.alive = False

    def _free(self, full_slots: np.ndarray, swa_slots: np.ndarray) -> None:
        self.full.free(full_slots)
        if self.swa is not None:
            self.swa.free(swa_slots)

    def reset(self) -> None:
        """Free everything. Raises AssertionError when a prefix is locked."""
        locked_full = self._cached_full - self._full_lru.tokens
        assert locked_full == 0, f"{locked_full} tokens of the prefix cache are still locked"
        for node in self._nodes():
            self.full.evict(node.full)
            if node.swa is not None:
                self.swa.evict(node.swa)
            node.alive = False
        self._clear()

    def _nodes(self) -> list[TreeNode]:
        """Every node but the root, parents before children."""
        nodes = list(self._root.children.values())
        for node in nodes:
            nodes.extend(node.children.values())
        return nodes

    # ---- checking ----

    def check(self, idle: bool = True, deep: bool = True) -> None:
        """Raise AssertionError, with numbers, where the books are wrong.

        `idle`: no request runs, so nothing is locked and every slot in use is the tree's. `deep`: go through the whole
        tree and all slots too, which takes some milliseconds per 100 thousand cached tokens.
        """
        pools = [("full", self.full, self._cached_full, self._full_lru)]
        if self.swa is not None:
            pools.append(("sliding", self.swa, self._cached_swa, self._swa_lru))
        for name, pool, cached, lru in pools:
            counts = f"{name} slots: {pool.used} in use, {pool.held} of them held, {cached} in the tree"
            assert pool.used - pool.held == lru.tokens, f"{counts}, of which {lru.tokens} could be evicted"
            if idle:
                assert pool.used == cached, f"{counts}: {pool.used - cached} leaked"
                assert lru.tokens == cached, f"{counts}: {cached - lru.tokens} are locked while idle"
        self.full.arena.check()
        if deep:
            self._check_tree()
            self.full.arena.check_deep()

    def _check_tree(self) -> None:
        nodes = self._nodes()
        for node in nodes:
            _check_node(node, self._root)
        live = [node for node in nodes if node.swa is not None]
        _check_slots("full", self.full, [node.full for node in nodes], self._cached_full)
        _check_order("full", self._full_lru, [node for node in nodes if not node.full_lock])
        if self.swa is not None:
            _check_slots("sliding", self.swa, [node.swa for node in live], self._cached_swa)
            _check_order("sliding", self._swa_lru, [node for node in live if not node.swa_lock])
        place = {id(node): index for index, node in enumerate(self._full_lru)}
        for node in self._full_lru:
            if not node.parent.full_lock and node.parent is not self._root:
                assert place[id(node)] < place[id(node.parent)], f"{_name(node)} would be evicted after its parent"


def _as_ids(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.asarray(ids, dtype=np.int64)


def _name(node: TreeNode) -> str:
    return f"node [{node.start}, {node.end})"


def _check_node(node: TreeNode, root: TreeNode) -> None:
    parent, name = node.parent, _name(node)
    key = node.key[1] if parent is root else node.key
    assert node.alive and parent.children[node.key] is node and key == node.tokens[0], f"{name} is not under its key"
    assert node.start == parent.end < node.end, f"{name} follows {_name(parent)}"
    sizes = [len(node.tokens), len(node.full), len(node) if node.swa is None else len(node.swa)]
    assert sizes == [len(node)] * 3, f"{name} has {sizes} tokens, full and sliding slots"
    assert 0 <= node.swa_lock <= node.full_lock, f"{name} is locked {node.full_lock} times, sliding {node.swa_lock}"
    assert parent is root or parent.full_lock >= node.full_lock, f"{name} is locked more often than {_name(parent)}"


def _check_slots(name: str, pool: SlotAllocator, parts: list[np.ndarray], cached: int) -> None:
    """No slot has two owners."""
    slots = np.concatenate([NO_SLOTS, *parts])
    assert len(slots) == cached, f"{name} pool: the tree holds {len(slots)} slots but counts {cached}"
    if len(slots) == 0:
        return
    owners = np.bincount(slots)
    assert owners.max() == 1, f"{name} pool: slots cached twice: {np.flatnonzero(owners > 1)[:8]}"
    free = slots[pool.is_free(slots)]
    assert len(free) == 0, f"{name} pool: {len(free)} slots are cached and free: {free[:8]}"


def _check_order(name: str, lru: LruList, expected: list[TreeNode]) -> None:
    """The order lists the nodes that can be evicted, each once."""
    listed = list(lru)
    wrong = {id(node) for node in listed} ^ {id(node) for node in expected}
    assert not wrong and len(listed) == len(expected), (
        f"{name} order: {len(listed)} nodes listed, {len(expected)} evictable"
    )
    uses = [node.full_link.used if name == "full" else node.swa_link.used for node in listed]
    assert uses == sorted(uses), f"{name} order: uses {uses} are out of order"
    tokens = sum(len(node) for node in listed)
    assert tokens == lru.tokens, f"{name} order: {tokens} tokens listed, {lru.tokens} counted"
