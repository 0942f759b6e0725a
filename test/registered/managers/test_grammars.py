"""Requests with grammars in the scheduler: they wait for the stream's word, every token is one that the mask holds, and
other requests get what they get alone. Also the manager that compiles them."""

import queue
import random
import sys
import threading

import pytest

from sglang.srt.constrained.grammar import GrammarError
from sglang.srt.managers import grammar_manager
from sglang.srt.managers.grammar_manager import GrammarManager
from sglang.srt.managers.io_struct import GrammarReadyReq, InternalStateReq
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.fake_grammar import FakeBackend, FakeGrammarManager, MaskedWorker, masked_token
from sglang.test.fake_worker import expected_output
from sglang.test.scheduler_harness import VOCAB, Harness, prompt_of

register_cpu_ci(est_time=5, suite="unit-test-cpu")

EOS = VOCAB - 1


def harness(**settings) -> Harness:
    sizes = {"full_size": 256, "swa_size": 256, "window": 8, "rows": 8, "max_len": 128} | {
        name: settings.pop(name) for name in ("full_size", "swa_size", "rows") if name in settings
    }
    worker = MaskedWorker(vocab_size=VOCAB, **sizes)
    return Harness(**sizes, worker=worker, grammars=FakeGrammarManager(FakeBackend(EOS)), **settings)


def ready(h: Harness, name: str, error: str | None = None) -> None:
    h.inbox.append(GrammarReadyReq(h.serial(name), error))


def expected(prompt: list[int], grammar: str) -> list[int]:
    tokens = list(prompt)
    for part in grammar.split():
        tokens.append(masked_token(tokens, set(map(int, part.split(","))), VOCAB))
    return tokens[len(prompt) :] + [EOS]


def random_grammar(rng: random.Random, length: int) -> str:
    return " ".join(",".join(map(str, rng.sample(range(EOS), 3))) for _ in range(length))


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
def test_grammars_among_others(overlap: bool, mixed: bool):
    """Long prompts in chunks, few slots, so that requests are retracted: the tokens are those of each alone."""
    h = harness(overlap=overlap, mixed=mixed, full_size=160, swa_size=100, conservativeness=0.1)
    rng, wanted = random.Random(1), {}
    for i in range(30):
        prompt = prompt_of(rng.randrange(1, 45), seed=i)
        if i % 3:
            grammar = random_grammar(rng, rng.randrange(1, 30))
            h.add(f"g{i}", prompt, max_new_tokens=40, params={"regex": grammar})
            ready(h, f"g{i}")
            wanted[f"g{i}"] = expected(prompt, grammar)
        else:
            h.add(f"r{i}", prompt, max_new_tokens=20)
            wanted[f"r{i}"] = expected_output(prompt, 20, VOCAB)
        h.step()
    h.run()
    for name, ids in wanted.items():
        got = h.received[name]
        assert got.ids == ids, name
        finish = got.finals[0].finish
        assert (finish.type, finish.matched) == (("stop", EOS) if name[0] == "g" else ("length", None))
    assert h.worker.held_steps > 20 and h.scheduler.stats.retractions > 0


def test_it_waits_apart_until_the_stream_says_so():
    h = harness()
    h.add("g", [1, 2, 3], params={"regex": "5 6"})
    h.add("r", [1, 2, 3], max_new_tokens=3)
    h.run()
    assert h.received["r"].finals and "g" not in h.received
    h.inbox.append(InternalStateReq("call"))
    h.step()
    assert h.other[-1].state["num_queue_reqs"] == 1
    ready(h, "g")
    h.run()
    assert h.received["g"].ids == [5, 6, EOS]


def test_waiting_ones_count_for_the_queue():
    h = harness(max_queued=1)
    h.add("g", [1], params={"regex": "5"})
    h.add("r", [1])
    h.step()
    assert h.received["r"].finals[0].finish.status_code == 503


def test_ready_ones_keep_their_order():
    h = harness(rows=1)
    for name in ("a", "b", "c"):
        h.add(name, [1], params={"regex": "5"})
    for name in ("c", "b", "a"):
        ready(h, name)
    h.run()
    assert list(h.received) == ["a", "b", "c"]


def test_a_grammar_that_cannot_be_had():
    h = harness()
    h.add("g", [1], params={"regex": "5"})
    ready(h, "g", "bad at 1")
    h.run()
    finish = h.received["g"].finals[0].finish
    assert (finish.type, finish.status_code, finish.message) == ("abort", 400, "bad at 1")
    assert not h.scheduler.grammars.held


def test_aborted_while_it_compiles():
    h = harness()
    h.add("g", [1], params={"regex": "5"})
    h.abort("g")
    ready(h, "g")
    h.run()
    assert [f.finish.type for f in h.received["g"].finals] == ["abort"]
    assert not h.scheduler.grammars.held and not h.scheduler.compiling


@pytest.mark.parametrize("overlap", [True, False])
def test_aborted_while_it_runs(overlap: bool):
    h = harness(overlap=overlap)
    h.add("g", [1], params={"regex": "5 6 7 8 9"})
    h.add("r", [1], max_new_tokens=9)
    ready(h, "g")
    for _ in range(3):
        h.step()
    h.abort("g")
    h.run()
    assert [f.finish.type for f in h.received["g"].finals] == ["abort"]
    assert h.received["r"].ids == expected_output([1], 9, VOCAB)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_way_without_end(overlap: bool):
    """The second set is empty: no token can follow the first."""
    h = harness(overlap=overlap)
    h.add("g", [1], params={"ebnf": "5 - 7"})
    h.add("r", [1], max_new_tokens=9)
    ready(h, "g")
    h.run()
    finish = h.received["g"].finals[0].finish
    assert (finish.status_code, finish.message) == (400, "ebnf leads to where no token can follow")
    assert h.received["r"].ids == expected_output([1], 9, VOCAB)


def test_length_and_stop_tokens_end_it_too():
    h = harness()
    h.add("short", [1], max_new_tokens=2, params={"regex": "5 6 7"})
    h.add("stopped", [1], params={"regex": "5 6 7", "stop_token_ids": [6]})
    h.add("none", [1], max_new_tokens=0, params={"regex": "5 6 7"})
    for name in ("short", "stopped", "none"):
        ready(h, name)
    h.run()
    assert {name: got.ids for name, got in h.received.items()} == {"short": [5, 6], "stopped": [5, 6], "none": []}
    assert [h.received[n].finals[0].finish.type for n in ("short", "stopped", "none")] == ["length", "stop", "length"]


def test_a_server_without_grammars_refuses():
    h = Harness()
    h.add("g", [1], params={"regex": "5"})
    h.run()
    assert h.received["g"].finals[0].finish.status_code == 400


# ---- the manager ---------------------------------------------------------------------------------------------------


class SlowBackend(FakeBackend):
    """Compiles once `release` is set."""

    def __init__(self):
        super().__init__(EOS)
        self.release = threading.Event()

    def compile(self, kind, text):
        self.release.wait(30)
        return super().compile(kind, text)


def test_the_manager_tells_of_each():
    said: queue.SimpleQueue[GrammarReadyReq] = queue.SimpleQueue()
    manager = GrammarManager(FakeBackend(EOS), said.put)
    manager.start(1, "regex", "5")
    assert said.get(timeout=30) == GrammarReadyReq(1)
    assert manager.take(1).accept(5)
    manager.start(2, "ebnf", "bad")
    assert said.get(timeout=30) == GrammarReadyReq(2, "ebnf cannot be compiled: bad at 1")
    manager.drop(2)
    manager.start(3, "regex", "not a number")  # what no backend should raise
    assert "could not be compiled: ValueError" in said.get(timeout=30).error


def test_a_compile_that_takes_too_long(monkeypatch):
    monkeypatch.setattr(grammar_manager, "COMPILE_SECONDS", 0.05)
    said: queue.SimpleQueue[GrammarReadyReq] = queue.SimpleQueue()
    backend = SlowBackend()
    manager = GrammarManager(backend, said.put)
    manager.start(1, "regex", "5")
    assert "was not compiled within" in said.get(timeout=30).error
    manager.drop(1)
    backend.release.set()


def test_another_rank_waits_for_its_own():
    backend = SlowBackend()
    manager = GrammarManager(backend, None)
    manager.start(1, "regex", "5")
    threading.Timer(0.05, backend.release.set).start()
    assert manager.take(1).accept(5)
    manager.start(2, "regex", "bad")
    with pytest.raises(GrammarError):
        manager.take(2)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
