"""Requests with grammars in the scheduler: they wait for the stream's word, every token is one that the mask holds, and
other requests get what they get alone. Also the manager that compiles them."""

import random
import sys

import pytest

from sglang.srt.managers.grammar_manager import GrammarManager
from sglang.srt.managers.io_struct import InternalStateReq
from sglang.srt.mem_cache.arena import ArenaShape
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.fake_grammar import FakeBackend, MaskedWorker, give_grammars, masked_token
from sglang.test.fake_worker import expected_output
from sglang.test.scheduler_harness import VOCAB, Harness, prompt_of

register_cpu_ci(est_time=5, suite="unit-test-cpu")

EOS = VOCAB - 1


def harness(**settings) -> Harness:
    sizes = {"full_size": 256, "swa_size": 256, "window": 8, "rows": 8, "max_len": 128} | {
        name: settings.pop(name) for name in ("full_size", "swa_size", "rows") if name in settings
    }
    shape = ArenaShape.apart(sizes.pop("full_size"), sizes.pop("swa_size"))
    h = Harness(shape=shape, **sizes, worker=MaskedWorker(shape, vocab_size=VOCAB, **sizes), **settings)
    h.backend = give_grammars(h, EOS, at_once=False)
    return h


def ready(h: Harness, text: str, kind: str = "regex") -> None:
    """That grammar, of a request that has been added, is compiled, and the stream says so."""
    if h.inbox:
        h.step()
    if (kind, text) in h.backend.held:
        h.backend.release(kind, text)


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
            ready(h, grammar)
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
    ready(h, "5 6")
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
    for name in ("5", "6", "7"):
        h.add(name, [1], params={"regex": name})
    h.step()
    for name in ("7", "6", "5"):
        h.backend.release("regex", name)
    h.run()
    assert list(h.received) == ["5", "6", "7"]


def test_a_grammar_that_cannot_be_had():
    h = harness()
    h.add("g", [1], params={"regex": "bad"})
    h.add("h", [2], params={"regex": "bad"})
    ready(h, "bad")
    h.run()
    for name in ("g", "h"):
        finish = h.received[name].finals[0].finish
        assert (finish.type, finish.status_code) == ("abort", 400)
        assert finish.message == "regex cannot be compiled: bad at 1"
    assert h.backend.compiles == 1 and not h.scheduler.compiling


def test_one_that_fails_for_another_reason_is_the_servers_fault():
    h = harness()
    h.add("g", [1], params={"regex": "not a number"})
    ready(h, "not a number")
    h.run()
    finish = h.received["g"].finals[0].finish
    assert finish.status_code == 500 and "could not be compiled: ValueError" in finish.message


def test_requests_share_a_grammar():
    """It is compiled once, and who comes later does not wait."""
    h = harness()
    h.add("a", [1], params={"regex": "5 6"})
    h.add("b", [2], params={"regex": "5 6"})
    ready(h, "5 6")
    h.run()
    h.add("c", [3], params={"regex": "5 6"})
    h.add("d", [3], params={"ebnf": "5 6"})
    h.step()
    assert list(h.scheduler.compiling) == [h.serial("d")]
    ready(h, "5 6", "ebnf")
    h.run()
    assert {name: got.ids for name, got in h.received.items()} == {name: [5, 6, EOS] for name in "abcd"}
    assert h.backend.compiles == 2


def test_aborted_while_it_compiles():
    """The other request still gets its grammar; when nobody waits any more, the compile ends."""
    h = harness()
    h.add("g", [1], params={"regex": "5"})
    h.add("h", [1], params={"regex": "5"})
    h.step()
    future = h.backend.held["regex", "5"]
    h.abort("g")
    h.step()
    assert not future.cancelled()
    h.abort("h")
    h.step()
    assert future.cancelled() and not h.scheduler.compiling
    assert [h.received[name].finals[0].finish.type for name in ("g", "h")] == ["abort"] * 2


def test_aborted_while_the_word_is_on_its_way():
    """A request that comes then waits for its own compile."""
    h = harness()
    h.add("g", [1], params={"regex": "5"})
    h.step()
    h.abort("g")
    h.add("h", [1], params={"regex": "5"})
    h.backend.release("regex", "5")
    h.step()
    assert h.received["g"].finals and list(h.scheduler.compiling) == [h.serial("h")]
    ready(h, "5")
    h.run()
    assert h.received["h"].ids == [5, EOS] and h.backend.compiles == 2


@pytest.mark.parametrize("overlap", [True, False])
def test_aborted_while_it_runs(overlap: bool):
    h = harness(overlap=overlap)
    h.add("g", [1], params={"regex": "5 6 7 8 9"})
    h.add("r", [1], max_new_tokens=9)
    ready(h, "5 6 7 8 9")
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
    ready(h, "5 - 7", "ebnf")
    h.run()
    finish = h.received["g"].finals[0].finish
    assert (finish.status_code, finish.message) == (400, "ebnf leads to where no token can follow")
    assert h.received["r"].ids == expected_output([1], 9, VOCAB)


def test_length_and_stop_tokens_end_it_too():
    h = harness()
    h.add("short", [1], max_new_tokens=2, params={"regex": "5 6 7"})
    h.add("stopped", [1], params={"regex": "5 6 7", "stop_token_ids": [6]})
    h.add("none", [1], max_new_tokens=0, params={"regex": "5 6 7"})
    ready(h, "5 6 7")
    h.run()
    assert {name: got.ids for name, got in h.received.items()} == {"short": [5, 6], "stopped": [5, 6], "none": []}
    assert [h.received[n].finals[0].finish.type for n in ("short", "stopped", "none")] == ["length", "stop", "length"]


def test_a_server_without_grammars_refuses():
    h = Harness()
    h.add("g", [1], params={"regex": "5"})
    h.run()
    assert h.received["g"].finals[0].finish.status_code == 400


# ---- the manager ---------------------------------------------------------------------------------------------------


def test_every_rank_keeps_the_same():
    """Rank 0 compiles, the others read what its word brings; what is kept, and no longer kept, is the same."""
    said = []
    first, second = FakeBackend(EOS, at_once=True), FakeBackend(EOS)
    lead = GrammarManager(first, said.append, shared=True, cache_bytes=250)
    follow = GrammarManager(second, None, shared=True, cache_bytes=250)
    rng = random.Random(0)
    hits = 0
    for serial in range(200):
        grammar = "regex", rng.choice(["1", "2", "3", "bad"])
        kept = [manager.start(serial, *grammar) is not None for manager in (lead, follow)]
        assert kept[0] == kept[1]
        hits += kept[0]
        while said and rng.random() < 0.7:
            message = said.pop(0)
            waited = [manager.finished(message) for manager in (lead, follow)]
            assert waited[0][0] == waited[1][0]
            assert (waited[0][1] is None) == (waited[1][1] is None) == (message.error is not None)
    assert hits > 20 and first.compiles > 20, "two fit, of three"
    assert second.compiles == 0 and second.loads > 20


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
