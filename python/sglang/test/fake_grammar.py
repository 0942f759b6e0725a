"""Grammars without a library, and a worker that heeds masks: for tests of scheduling."""

from concurrent.futures import Future

import numpy as np

from sglang.srt.constrained.grammar import GrammarError, set_bit
from sglang.srt.managers.grammar_manager import GrammarManager
from sglang.srt.model_executor.step_io import HeldStep, StepInput, TokenMasks
from sglang.srt.sampling.sampling_flags import SamplingFlags
from sglang.test.fake_worker import ContextWorker, Done, next_token
from sglang.test.scheduler_harness import Harness


def allowed(mask: np.ndarray, vocab_size: int) -> set[int]:
    """The tokens of a mask, bit by bit."""
    return {i for i in range(vocab_size) if int(mask[i // 32]) >> (i % 32) & 1}


class FakeGrammar:
    """`sets[i]`: what output token i may be; then comes `end`."""

    def __init__(self, sets: list[set[int]], end: int):
        self._sets = [*sets, {end}]
        self._at = 0

    @property
    def ended(self) -> bool:
        return self._at == len(self._sets)

    def needs_mask(self, ahead: int) -> bool:
        return True

    def accept(self, token: int) -> bool:
        if self.ended or token not in self._sets[self._at]:
            return False
        self._at += 1
        return True

    def rollback(self) -> None:
        self._at -= 1

    def fill(self, mask: np.ndarray) -> None:
        mask.fill(0)
        for token in self._sets[self._at]:
            set_bit(mask, token, True)


class FakeCompiled:
    nbytes = 100

    def __init__(self, kind: str, text: str, end: int):
        if text == "bad":
            raise GrammarError(f"{kind} cannot be compiled: bad at 1")
        self._sets = [set(map(int, part.split(","))) if part != "-" else set() for part in text.split()]
        self._end = end

    def begin(self) -> FakeGrammar:
        return FakeGrammar(self._sets, self._end)


class FakeBackend:
    """Reads grammars like "1,2 7" as the sets of a FakeGrammar; "bad" can't be compiled. One is compiled when release()
    says so, or at once."""

    def __init__(self, end: int, at_once: bool = False):
        self._end, self._at_once = end, at_once
        self.held: dict[tuple[str, str], Future] = {}
        self.compiles = 0
        self.loads = 0

    def compile(self, kind: str, text: str) -> Future:
        self.compiles += 1
        self.held[kind, text] = future = Future()
        if self._at_once:
            self.release(kind, text)
        return future

    def release(self, kind: str, text: str) -> None:
        future = self.held.pop((kind, text))
        try:
            result = FakeCompiled(kind, text, self._end)
        except Exception as e:
            future.set_exception(e)
        else:
            future.set_result((result, text.encode()))

    def prepare(self) -> None:
        pass

    def load(self, kind: str, text: str, data: bytes) -> FakeCompiled:
        assert data == text.encode()
        self.loads += 1
        return FakeCompiled(kind, text, self._end)


def give_grammars(h: Harness, end: int, at_once: bool = True) -> FakeBackend:
    """Let the harness's scheduler have grammars, whose outputs end with the token `end`."""
    backend = FakeBackend(end, at_once)
    h.scheduler.grammars = GrammarManager(backend, lambda message: h.inbox.append(message))
    return backend


def masked_token(context: list[int], mask: set[int], vocab_size: int) -> int:
    """What MaskedWorker makes: the ContextWorker's token, or of those allowed the lowest."""
    token = next_token(context, vocab_size)
    return token if token in mask else min(mask)


class MaskedWorker(ContextWorker):
    """Checks that a held step is sampled before the next one comes."""

    held: HeldStep | None = None
    held_steps = 0

    def submit(self, step: StepInput) -> Done | HeldStep:
        assert self.held is None, "the step before was not sampled"
        done = super().submit(step)
        if not step.flags & SamplingFlags.MASK:
            return done
        self.held_steps += 1
        self.held = HeldStep(lambda masks: self._sample(step, done, masks), lambda: None)
        return self.held

    def _sample(self, step: StepInput, done: Done, masks: TokenMasks) -> Done:
        self.held = None
        output = done.result()
        for place, bits in zip(masks.places, masks.bits, strict=True):
            tokens = allowed(bits, self.vocab_size)
            if output.next_ids[place][0] not in tokens:
                output.next_ids[place] = [min(tokens)]
                self.last_tokens[step.rows[step.sampled[place]]] = min(tokens)
        return Done(output)
