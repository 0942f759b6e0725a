"""MaskMaker: from the grammars of a step's requests to the masks of their next tokens, on several processors."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sglang.srt.constrained.grammar import Grammar, mask_words
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.model_executor.step_io import DraftTokens, TokenMasks

THREADS = max(1, min(16, (os.cpu_count() or 1) // 2))  # libraries fill masks without Python's lock
FEW = 3  # requests that are not worth waking threads


class MaskMaker:
    """For a vocabulary of `vocab_size` tokens. The threads start when they are needed."""

    def __init__(self, vocab_size: int):
        self._words = mask_words(vocab_size)
        self._threads = ThreadPoolExecutor(THREADS, "masks")
        self._bits = np.empty((0, self._words), dtype=np.int32)  # that of the last step, whose tokens are there

    def make(self, reqs: list[Req], drafts: DraftTokens | None) -> TokenMasks:
        """What the next tokens of a launched step may be, behind each node of its drafts where it has some. Grammars
        are as they were afterwards. Where no token can follow, all may: the grammar takes none of them, then. The masks
        are valid until the next call, before which the step must be through."""
        nodes = 1 if drafts is None else drafts.tokens.shape[1]
        masked = [
            i
            for i, req in enumerate(reqs)
            if req.finish is None and req.grammar is not None and req.grammar.needs_mask(nodes - 1)
        ]
        rows = len(masked) * nodes
        if rows > len(self._bits):  # new memory costs more than masks for simple grammars
            self._bits = np.empty((rows, self._words), dtype=np.int32)
        bits = self._bits[:rows].reshape(-1, nodes, self._words)

        def fill(k: int) -> None:
            grammar, i = reqs[masked[k]].grammar, masked[k]
            if drafts is None:
                _fill(grammar, bits[k, 0])
            else:
                _fill_draft(grammar, bits[k], drafts.tokens[i].tolist(), drafts.parents[i].tolist())

        self._share(fill, len(masked))
        places = np.array(masked, dtype=np.int64)[:, None] * nodes + np.arange(nodes)
        return TokenMasks(places.flatten(), bits.reshape(-1, self._words))

    def _share(self, work: Callable[[int], None], count: int) -> None:
        """work(0) to work(count - 1). Threads take the next number when they are done with one, this one too: a task
        for each would cost as much as a mask."""
        numbers = iter(range(count))  # Python's lock lets one thread at a time take one

        def some() -> None:
            for k in numbers:
                work(k)

        helpers = [self._threads.submit(some) for _ in range(min(THREADS, count) - 1)] if count > FEW else []
        some()
        for helper in helpers:
            if not helper.cancel():  # it has begun
                helper.result()

    def dead_end(self, req: Req) -> str:
        """Why the sampler found no token for a request that its grammar takes."""
        row = np.zeros(self._words, dtype=np.int32)
        req.grammar.fill(row)
        if row.any():  # by a bias or penalty of minus infinity, or since the model never says it
            return f"every token that {req.params.form} allows next is barred"
        return f"{req.params.form} leads to where no token can follow"


def _fill(grammar: Grammar, row: np.ndarray) -> None:
    grammar.fill(row)
    if not row.any():
        row.fill(-1)


def _fill_draft(grammar: Grammar, rows: np.ndarray, tokens: list[int], parents: list[int]) -> None:
    """Row j: what may follow node j. Behind a node that its parent's row bars nothing is accepted, nor behind an end:
    what stands in their rows does not matter."""
    children: list[list[int]] = [[] for _ in tokens]
    for node in range(1, len(tokens)):
        children[parents[node]].append(node)
    rows.fill(-1)

    def walk(node: int) -> None:
        if grammar.ended:
            return
        _fill(grammar, rows[node])
        for child in children[node]:
            if grammar.accept(tokens[child]):
                walk(child)
                grammar.rollback()

    walk(0)
