"""Workers without a model, for tests and benchmarks of the scheduler.

ContextWorker keeps, for each KV slot, which token at which position was written there, checks that every request reads
exactly its own tokens through its slots, and makes the next token a function of the whole context: any slot given to
two owners, freed too early or shared wrongly, and memory lent to both kinds of slot, either fails a check or changes
the output. NullWorker costs nothing.
"""

import random
import zlib
from collections import deque

import numpy as np

from sglang.srt.mem_cache.arena import ArenaShape
from sglang.srt.mem_cache.slot_copies import StepCopies
from sglang.srt.model_executor.step_io import StepInput, StepOutput, TokenLogprob


class Done:
    """A step whose result is there already."""

    def __init__(self, output: StepOutput):
        self._output = output

    def result(self) -> StepOutput:
        return self._output


def next_token(context: list[int] | np.ndarray, vocab_size: int) -> int:
    """The token ContextWorker makes after `context`."""
    return zlib.crc32(np.asarray(context, dtype=np.int64).tobytes()) % vocab_size


def expected_output(
    prompt: list[int], count: int, vocab_size: int, stop_ids: frozenset[int] = frozenset()
) -> list[int]:
    """What a request gets when it is served alone and by the book."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, vocab_size))
        if tokens[-1] in stop_ids:
            break
    return tokens[len(prompt) :]


class SlotMemory:
    """What the slots of an arena hold: a token and its position, -1 for nothing."""

    def __init__(self, shape: ArenaShape):
        pages = shape.num_pages + 1
        self.full = np.full((pages * shape.full_per_page, 2), -1, dtype=np.int64)
        self.swa = np.full((pages * shape.swa_per_page, 2), -1, dtype=np.int64)
        # full slots in the memory of a sliding one
        self._ratio = shape.full_per_page / shape.swa_per_page if shape.swa_per_page else None

    def write(self, full: np.ndarray, content: np.ndarray, swa: np.ndarray, swa_content: np.ndarray) -> None:
        """Contents [n, 2] into full slots [n], and [m, 2] into sliding ones [m]; a slot of the other kind in the same
        memory then holds nothing."""
        if self._ratio is not None:
            self.swa[np.unique((full[:, None] + [0, 1 - 1e-9]) // self._ratio).astype(np.int64)] = -1
            first, last = np.floor(swa * self._ratio), np.ceil((swa + 1) * self._ratio)
            for begin, end in zip(first.astype(int), last.astype(int), strict=True):
                self.full[begin:end] = -1
            self.swa[swa] = swa_content
        self.full[full] = content


class LateCopies:
    """Carries a step's copies out as late as steps allow, or at any time before: a slot that is read too early or
    overwritten too early holds something else."""

    def __init__(self, card: SlotMemory, host: SlotMemory):
        self.card, self.host = card, host
        self.random = random.Random(1)
        self.waiting: deque[StepCopies] = deque()

    def run(self, copies: StepCopies | None) -> None:
        needs = 0
        if copies is not None:
            needs = copies.needs
            if copies.out or copies.back:
                self.waiting.append(copies)
        while self.waiting and (self.waiting[0].batch <= needs or self.random.random() < 0.2):
            batch = self.waiting.popleft()
            for copy in batch.out:
                card, host = self.card, self.host
                host.write(copy.host_full, card.full[copy.full], copy.host_swa, card.swa[copy.swa])
            for copy in batch.back:
                card, host = self.card, self.host
                card.write(copy.full, host.full[copy.host_full], copy.swa, host.swa[copy.host_swa])


class ContextWorker:
    """`window`: W keys including the query's own, None for a model without sliding layers.

    `decode_tokens` > 1: decode steps verify drafts of that many tokens, of which a random number is right, at random
    places (as in a tree), and the slots of the others hold rubbish.
    `host`: the shape of the host tier, if there is one.
    """

    def __init__(
        self,
        shape: ArenaShape,
        window: int | None,
        rows: int,
        max_len: int,
        vocab_size: int,
        decode_tokens: int = 1,
        host: ArenaShape | None = None,
    ):
        self.decode_tokens = decode_tokens
        self.random = random.Random(0)
        self.window = window
        self.vocab_size = vocab_size
        self.kv = SlotMemory(shape)
        self.copies = LateCopies(self.kv, SlotMemory(host)) if host else None
        width = max_len + decode_tokens - 1
        self.full_table = np.zeros((rows + 1, width), dtype=np.int64)
        self.swa_table = np.zeros((rows + 1, width), dtype=np.int64)
        self.last_tokens = np.zeros(rows + 1, dtype=np.int64)
        self.steps = 0
        self.prefill_tokens = 0
        self.mixed_steps = 0

    def submit(self, step: StepInput) -> Done:
        self.steps += 1
        if self.copies is not None:
            self.copies.run(step.copies)
        self.prefill_tokens += len(step.prefill_ids)
        self.mixed_steps += 0 < step.num_extends < len(step.rows)
        for write in step.table_writes:
            end = write.start + len(write.full_slots)
            self.full_table[write.row, write.start : end] = write.full_slots
            self.swa_table[write.row, write.start : end] = write.swa_slots
        if self.decode_tokens > 1 and not step.num_extends:
            return Done(self._verify(step))
        ids = np.concatenate([step.prefill_ids, self.last_tokens[step.rows[step.num_extends :]]])
        starts = np.cumsum(step.extend_lens) - step.extend_lens
        assert len(ids) == step.extend_lens.sum() == len(step.out_cache_loc)
        assert (step.out_cache_loc > 0).all() and len(set(step.out_cache_loc)) == len(ids)
        for b, row in enumerate(step.rows):
            count, end = step.extend_lens[b], step.seq_lens[b]
            part = slice(starts[b], starts[b] + count)
            positions = np.arange(end - count, end)
            self.full_table[row, positions] = step.out_cache_loc[part]
            if self.window is not None:
                assert (step.out_cache_loc_swa[part] > 0).all()
                self.swa_table[row, positions] = step.out_cache_loc_swa[part]
            self._write(step, part, np.stack([ids[part], positions], axis=1))
        contexts = [self._read(b, step) for b in range(len(step.rows))]
        next_ids = [next_token(contexts[i], self.vocab_size) for i in step.sampled]
        self.last_tokens[step.rows[step.sampled]] = next_ids
        output = StepOutput([[token] for token in next_ids])
        if step.output_logprobs is not None:
            output.output_logprobs = [
                None if w is None else [TokenLogprob(-float(t), None, None)]
                for w, t in zip(step.output_logprobs, next_ids, strict=True)
            ]
        for wanted in step.prompt_logprobs:  # minus the id of the token itself: tests can see which one was meant
            output.prompt_logprobs.append([TokenLogprob(-float(t), None, None) for t in wanted.next_ids])
        return Done(output)

    def copy(self, copies: StepCopies) -> None:
        self.copies.run(copies)

    def _write(self, step: StepInput, part: slice, content: np.ndarray) -> None:
        """The tokens of `part` into their slots."""
        self.kv.write(step.out_cache_loc[part], content, step.out_cache_loc_swa[part], content)

    def _verify(self, step: StepInput) -> StepOutput:
        count = self.decode_tokens
        assert (step.extend_lens == count).all() and len(set(step.out_cache_loc)) == count * len(step.rows)
        output = StepOutput([], [] if step.output_logprobs is not None else None, kept=[])
        for b, row in enumerate(step.rows):
            start, part = int(step.seq_lens[b]) - count, slice(b * count, (b + 1) * count)
            positions = np.arange(start, start + count)
            context = self._context(row, 1, start).tolist() + [int(self.last_tokens[row])]
            places = [0, *sorted(self.random.sample(range(1, count), self.random.randrange(count)))]
            rubbish = np.full((count, 2), -7)
            for position, place in zip(positions, places, strict=False):
                rubbish[place] = context[-1], position
                context.append(next_token(context, self.vocab_size))
            self.full_table[row, positions] = step.out_cache_loc[part]
            if self.window is not None:
                self.swa_table[row, positions] = step.out_cache_loc_swa[part]
            self._write(step, part, rubbish)
            output.next_ids.append(context[start + 1 :])
            output.kept.append(places)
            self.last_tokens[row] = context[-1]
            if step.output_logprobs is not None:
                wanted = step.output_logprobs[b] is not None
                entries = [TokenLogprob(-float(t), None, None) for t in output.next_ids[-1]]
                output.output_logprobs.append(entries if wanted else None)
        return output

    def _read(self, b: int, step: StepInput) -> np.ndarray:
        return self._context(step.rows[b], step.extend_lens[b], step.seq_lens[b])

    def _context(self, row: int, count: int, end: int) -> np.ndarray:
        """The first `end` tokens of a request, whose last `count` are queries, through its slots; checks each slot."""
        content = self.kv.full[self.full_table[row, :end]]
        assert (content[:, 1] == np.arange(end)).all(), f"row {row}: full slots hold positions {content[:, 1]}"
        if self.window is not None:
            first = max(0, end - count - (self.window - 1))
            visible = self.kv.swa[self.swa_table[row, first:end]]
            assert (visible == content[first:]).all(), (
                f"row {row}: sliding slots {self.swa_table[row, first:end]} differ"
            )
        return content[:, 0]


class NullWorker:
    """Answers every step at once with token 1."""

    def submit(self, step: StepInput) -> Done:
        return Done(StepOutput([[1]] * len(step.sampled)))
