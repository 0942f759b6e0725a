"""RadixCache: the tree of cached prefixes. It owns the slots of its tokens and says which prefixes can be used again.

A model with sliding layers keeps two slots a token. The full one lives as long as the node; the sliding part of a node
may be dropped alone. With a window of W tokens (the query's own included), a prefix of length L is reusable where the
sliding slots of all tokens in [max(0, L - (W - 1)), L) are there. The *tail* of a prefix is the last W tokens: one more
than reuse needs, because the same prompt asked again may only use all its tokens but one.

What is worth keeping are the windows where somebody will go on: at the end of a prompt or answer and where prompts
part. A node at such a place is an *end* (`is_end`) and keeps its window. Sliding slots that no window needs are given
up first. After them the end goes that costs least. Its worth are the tokens that would be computed anew without it,
times how likely it is to be asked for, by the pages it takes. Each end given up raises the tree's `level` to its price,
and the price of an end is the level at its last use plus its worth: so what is not used for long grows cheap beside
what is, the sooner the less it saves (known as GreedyDual or Landlord). No clock is read, so all ranks evict alike.

An end without children goes as a whole, with the ancestors in which then no prefix ends; any other loses its window
only. A tree without sliding slots gives up the leaf that was used least recently: its tokens all save the same.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sglang.srt.mem_cache.arena import SlotAllocator
from sglang.srt.mem_cache.radix_node import EvictionQueue, Price, TreeNode
from sglang.srt.mem_cache.tree_check import check_tree

NO_SLOTS = np.zeros(0, dtype=np.int32)
NO_TOKENS = np.zeros(0, dtype=np.int64)
PASSED = 1 / 32  # how likely an end is asked for once somebody has gone on beyond the next, beside others
GOLDEN = (5**0.5 - 1) / 2


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

    spread = 1.0  # ends are worth up to this much more by lot

    def __init__(self, full: SlotAllocator, swa: SlotAllocator | None, window: int | None, enabled: bool = True):
        if (swa is None) != (window is None):
            raise ValueError(f"sliding slots and a window come together, got {swa} and {window}")
        if window is not None and window < 2:
            raise ValueError(f"window {window} must be at least 2: a query and one token before it")
        self.full = full
        self.swa = swa
        self.window = window
        self.enabled = enabled
        self._queue = EvictionQueue(self._price)
        self._clear()

    def _clear(self) -> None:
        self._root = TreeNode(None, None, 0, NO_TOKENS, NO_SLOTS, None)
        self._queue.clear()
        self._cached_full = self._cached_swa = 0
        self._locked_full = self._locked_swa = 0
        self._clock = 0  # ticks once a match or insert
        self._level = 0.0
        self._lot = 0.0  # of the last end, in [0, 1)

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

    def find(self, ids: Sequence[int] | np.ndarray, extra_key: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Slots (as in Match) of the longest prefix of `ids` that is here, reusable or not; counts as no use of it."""
        return self._slots(*self._walk(_as_ids(ids), extra_key))

    def evictable(self) -> tuple[int, int]:
        """Full and sliding slots that evict() could free now."""
        return self._cached_full - self._locked_full, self._cached_swa - self._locked_swa

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
        """A prefix is used now: with sliding slots its end and the places where others part from it."""
        for node in path:
            if self.swa is None or (node.is_end and (node.end == length or len(node.children) > 1)):
                node.used, node.level = self._clock, self._level

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
                if part.swa_lock == 1 and part.swa is not None:
                    self._locked_swa += len(part)
                    self.swa.hold(part.swa)
        while node is not self._root:
            node.full_lock += 1
            if node.full_lock == 1:
                self._locked_full += len(node)
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
                self._locked_swa -= len(part)
                self.swa.cache(part.swa)
                self._queue.put(part)

    def unlock(self, anchor: Anchor, swa_released: bool = False) -> None:
        """Take one lock() back. That is no use of the prefix: it goes where its last match or insert puts it."""
        if not swa_released:
            self.release_swa(anchor)
        node = anchor.node
        while node is not self._root:
            node.full_lock -= 1
            assert node.full_lock >= 0, f"[{node.start}, {node.end}) unlocked more than locked"
            if node.full_lock == 0:
                self._locked_full -= len(node)
                self.full.cache(node.full)
                self._queue.put(node)
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
            self._note_ends(node, branch)
        path = self._path(node)
        self._touch(path, n)
        for part in path:
            if part.end > held or part is branch:
                self._queue.put(part)
        return Inserted(Anchor(node, n), *self._slots(path, n))

    def _note_ends(self, end: TreeNode, branch: TreeNode) -> None:
        """A prefix that ends with `end` was inserted, which left the cached ones at `branch`."""
        if end is branch:
            end.hits += 1
        elif branch is not self._root:
            if len(branch.children) > 1:
                branch.hits += 1
                self._keep_window(branch)
            else:  # it goes on where the other ended
                end.turns = branch.turns + 1
            above = self._end_above(branch)
            above.passed = True
            self._queue.put(above)
        self._keep_window(end)

    def _keep_window(self, end: TreeNode) -> None:
        """Somebody may go on after `end`, if its window is there."""
        parts = self._tail(end)
        needed_from = end.end - (self.window - 1)
        if not end.is_end and all(part.swa is not None or part.end <= needed_from for part in parts):
            end.is_end = True
            end.lot = self._lot = (self._lot + GOLDEN) % 1.0
            for part in parts:
                part.windows += 1

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
            if part.swa_lock:
                self._locked_swa += len(part)
            else:
                self.swa.cache(part.swa)
                self._queue.put(part)

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
        self.full.cache(full)
        if swa is not None:
            self._cached_swa += len(node)
            self.swa.cache(swa)
        node.used, node.level = self._clock, self._level
        return node

    def _split(self, node: TreeNode, at: int) -> TreeNode:
        """Part `node` at position `at`; returns the new upper part. Locks and kept windows hold for both."""
        assert node.start < at < node.end, f"split [{node.start}, {node.end}) at {at}"
        k = at - node.start
        swa = None if node.swa is None else node.swa[:k]
        upper = TreeNode(node.parent, node.key, node.start, node.tokens[:k], node.full[:k], swa)
        upper.full_lock, upper.swa_lock = node.full_lock, node.swa_lock
        upper.windows, upper.used, upper.level = node.windows, node.used, node.level
        node.parent.children[node.key] = upper
        node.parent = upper
        node.start = at
        node.tokens, node.full = node.tokens[k:], node.full[k:]
        node.swa = None if swa is None else node.swa[k:]
        node.key = int(node.tokens[0])
        upper.children[node.key] = node
        self._queue.put(upper)
        return upper

    def _path(self, node: TreeNode) -> list[TreeNode]:
        path = []
        while node is not self._root:
            path.append(node)
            node = node.parent
        return path[::-1]

    # ---- shrinking ----

    def evict(self, full: int, swa: int) -> tuple[int, int]:
        """Free at least `full` and `swa` slots if that many are evictable; returns how many of each were freed."""
        before_full, before_swa = self._cached_full, self._cached_swa
        while before_swa - self._cached_swa < swa and self.evict_one():
            pass
        while before_full - self._cached_full < full and self._evict(self._is_free_leaf):
            pass
        return before_full - self._cached_full, before_swa - self._cached_swa

    def evict_one(self) -> bool:
        """Free what costs least, a leaf or sliding slots; False when nothing is left to evict."""
        return self._evict(lambda node: True)

    def _evict(self, wanted: Callable[[TreeNode], bool]) -> bool:
        node = self._queue.pop(wanted)
        if node is None:
            return False
        if not node.swa_lock:
            self._level = max(self._level, self._price(node)[0])
        if self._is_free_leaf(node):
            self._remove_leaf(node)
        elif node.is_end:
            self._give_up_window(node)
        else:
            self._drop_swa(node)
        return True

    @staticmethod
    def _is_free_leaf(node: TreeNode) -> bool:
        return not node.children and not node.full_lock

    def _price(self, node: TreeNode) -> Price | None:
        """What giving this node up costs, as far as it can be given up: see the top of this file."""
        if node is self._root or not node.alive:
            return None
        if self.swa is None:
            return (node.level, node.used, -node.end) if self._is_free_leaf(node) else None
        if node.is_end:  # while it is in use, only what lies before the locked part can be freed
            return math.inf if node.swa_lock else node.level + self._worth(node), node.used, -node.end
        return None if node.swa is None or node.swa_lock or node.windows else (0.0, node.used, -node.end)

    def _worth(self, end: TreeNode) -> float:
        """Tokens that an end saves, by the pages it takes."""
        above = self._end_above(end)
        pages = min(end.end, self.window) / self.swa.per_page
        if not end.children:
            alone, parent = len(end), end.parent
            while parent is not above and len(parent.children) == 1:
                alone, parent = alone + len(parent), parent.parent
            pages += alone / self.full.per_page
        likely = end.hits.bit_length() + (PASSED if end.passed and end.children else 1 + end.turns.bit_length())
        return (end.end - above.end) * likely * (1 + self.spread * end.lot) / pages

    def _end_above(self, end: TreeNode) -> TreeNode:
        """Where a prefix ends before `end`, the root if none does."""
        above = end.parent
        while above is not self._root and not above.is_end:
            above = above.parent
        return above

    def _give_up_window(self, end: TreeNode) -> None:
        """Nobody is expected to go on after `end` any more: what only its window needed is freed."""
        end.is_end = False
        for part in self._tail(end):
            part.windows -= 1
            if not part.windows and not part.swa_lock and part.swa is not None:
                self._drop_swa(part)

    def _drop_swa(self, node: TreeNode) -> None:
        self._cached_swa -= len(node)
        self.swa.evict(node.swa)
        node.swa = None

    def _remove_leaf(self, node: TreeNode) -> None:
        """Free an unlocked leaf as a whole, then the ancestors that serve nobody any more."""
        if node.is_end:
            self._give_up_window(node)
        self._remove(node)
        self._prune(node.parent)

    def _prune(self, node: TreeNode) -> None:
        """Remove `node`, and then its ancestors, while they are unlocked leaves in which no prefix can end."""
        while self.swa is not None and node is not self._root:
            if node.swa is not None or node.children or node.full_lock:
                break
            self._remove(node)
            node = node.parent
        self._queue.put(node)  # which may be a leaf now

    def _remove(self, node: TreeNode) -> None:
        assert not node.children and not node.full_lock, f"[{node.start}, {node.end}) is no unlocked leaf"
        if node.swa is not None:
            self._drop_swa(node)
        self._cached_full -= len(node)
        self.full.evict(node.full)
        del node.parent.children[node.key]
        node.alive = False
        self._queue.remove(node)

    def _free(self, full_slots: np.ndarray, swa_slots: np.ndarray) -> None:
        self.full.free(full_slots)
        if self.swa is not None:
            self.swa.free(swa_slots)

    def reset(self) -> None:
        """Free everything. Raises AssertionError when a prefix is locked."""
        assert self._locked_full == 0, f"{self._locked_full} tokens of the prefix cache are still locked"
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

        `idle`: no request runs, so nothing is locked and every slot in use is the tree's. `deep`: deep_checks() too.
        """
        pools = [("full", self.full, self._cached_full, self._locked_full)]
        if self.swa is not None:
            pools.append(("sliding", self.swa, self._cached_swa, self._locked_swa))
        for name, pool, cached, locked in pools:
            counts = f"{name} slots: {pool.used} in use, {pool.held} of them held, {cached} in the tree"
            assert pool.used - pool.held == cached - locked, f"{counts}, of which {cached - locked} could be evicted"
            if idle:
                assert pool.used == cached, f"{counts}: {pool.used - cached} leaked"
                assert locked == 0, f"{counts}: {locked} are locked while idle"
        self.full.arena.check()
        for _ in self.deep_checks() if deep else ():
            pass

    def deep_checks(self) -> Iterator[None]:
        """Goes through the whole tree and all slots in parts of about a millisecond, between which nothing changes."""
        yield from check_tree(self)
        yield from self.full.arena.deep_checks()


def _as_ids(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.asarray(ids, dtype=np.int64)
