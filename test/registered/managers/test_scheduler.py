"""The scheduler on a worker that checks every slot: any schedule gives the tokens of a request served alone."""

import random
import sys

import pytest

from sglang.srt.managers.io_struct import (
    AbortReq,
    EndFlushReq,
    FlushCacheReply,
    FlushCacheReq,
    InternalStateReply,
    InternalStateReq,
)
from sglang.srt.managers.request_stream import once_in
from sglang.srt.mem_cache.arena import ArenaShape
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.fake_worker import expected_output
from sglang.test.scheduler_harness import VOCAB, Harness, feed_sharing_requests, prompt_of

register_cpu_ci(est_time=20, suite="unit-test-cpu")


def check(h: Harness, rid: str, prompt: list[int], count: int) -> None:
    got = h.received[rid]
    assert got.ids == expected_output(prompt, count, VOCAB)
    (final,) = got.finals
    assert final.finish.type == "length"


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("length,chunk", [(1, 16), (5, 16), (16, 16), (17, 16), (60, 16), (60, 3), (60, -1), (100, 7)])
def test_one_request(length: int, chunk: int, overlap: bool):
    h = Harness(chunk=chunk, overlap=overlap, mixed=chunk > 0)
    h.add("a", prompt_of(length), 20)
    h.run()
    check(h, "a", prompt_of(length), 20)


@pytest.mark.parametrize("window", [None, 2, 8, 64])
@pytest.mark.parametrize("policy", ["fcfs", "lpm"])
@pytest.mark.parametrize("mixed", [True, False])
def test_many_requests_under_pressure(window: int | None, policy: str, mixed: bool):
    """Pools far too small for all: chunks, shared prefixes, evictions, retractions, and still the right tokens."""
    rng = random.Random(f"{window}{policy}{mixed}")
    h = Harness(
        full_size=150, swa_size=max(100, 2 * (window or 0)), window=window, rows=6, chunk=12, policy=policy,
        mixed=mixed, conservativeness=0.5,
    )  # fmt: skip
    wanted = feed_sharing_requests(h, rng)
    for rid, (prompt, count) in wanted.items():
        check(h, rid, prompt, count)
    assert h.scheduler.stats.retractions > 0, "the test is meant to run out of slots"
    assert any(r.finals[0].report.cached_tokens > 0 for r in h.received.values())
    assert (h.worker.mixed_steps > 0) == mixed
    h.kv.check_idle()


SHARED = {  # arenas in which both kinds of slot want the last page
    "single": ArenaShape(220, 1, 1, 220, 220),
    "ten to one": ArenaShape(46, 10, 1, 460, 46),
    "runs": ArenaShape(40, 16, 8, 640, 320, 4),
    "uneven": ArenaShape(24, 15, 10, 360, 240, 5),
}


@pytest.mark.parametrize("name,policy,overlap", [(name, "fcfs", True) for name in SHARED] + [("runs", "lpm", False)])
def test_many_requests_in_one_arena(name: str, policy: str, overlap: bool):
    """As above where memory goes to whichever kind asks: nothing deadlocks, and every token is right."""
    shape = SHARED[name]
    h = Harness(shape=shape, window=8, rows=6, chunk=12, policy=policy, overlap=overlap, conservativeness=0.1)
    wanted = feed_sharing_requests(h, random.Random(f"{shape}{policy}"))
    for rid, (prompt, count) in wanted.items():
        check(h, rid, prompt, count)
    assert any(r.finals[0].report.cached_tokens > 0 for r in h.received.values())
    h.kv.check_idle()
    h.kv.flush()
    assert h.kv.arena.free_pages == shape.num_pages


def test_memory_of_one_kind_serves_the_other():
    """Six contexts of 11 pages and their windows of up to 18: as many at once as that makes of 140 pages."""
    h = Harness(shape=ArenaShape(140, 10, 1, 1400, 140), window=8, rows=6, chunk=16)
    for i in range(6):
        h.add(f"r{i}", prompt_of(40, seed=i), 60)
    most = 0
    while h.inbox or not h.scheduler.is_idle:
        h.step()
        most = max(most, len(h.scheduler.running))
    assert most >= 4 and h.scheduler.stats.retractions == 0
    for i in range(6):
        check(h, f"r{i}", prompt_of(40, seed=i), 60)


@pytest.mark.parametrize("overlap", [True, False])
def test_random_aborts_and_stops_leak_nothing(overlap: bool):
    rng = random.Random(5)
    h = Harness(shape=ArenaShape(40, 10, 5, 400, 200, 5), rows=5, chunk=10, overlap=overlap)
    alive = []
    for i in range(300):
        if rng.random() < 0.4:
            h.add(f"r{i}", prompt_of(rng.randrange(1, 60), seed=i % 7), rng.randrange(1, 40), ignore_eos=False)
            alive.append(f"r{i}")
        if alive and rng.random() < 0.2:
            rid = alive.pop(rng.randrange(len(alive)))
            (h.abort if rng.random() < 0.5 else h.stop)(rid)
        if h.inbox or not h.scheduler.is_idle:
            h.step()
    h.inbox.append(AbortReq(abort_all=True))
    h.run()
    assert all(len(r.finals) == 1 for r in h.received.values())
    assert {r.finals[0].finish.type for r in h.received.values()} >= {"abort", "stop", "length"}
    h.kv.check_idle()


def test_stop_token_ends_a_request_with_one_step_in_flight():
    prompt = prompt_of(20)
    stop = expected_output(prompt, 5, VOCAB)[4]
    h = Harness()
    h.add("a", prompt, 50, params={"stop_token_ids": [stop]})
    h.run()
    got = h.received["a"]
    assert got.ids == expected_output(prompt, 5, VOCAB)
    assert got.finals[0].finish.type == "stop" and got.finals[0].finish.matched == stop
    h.kv.check_idle()


def test_prefix_of_a_running_request_is_shared_at_once():
    h = Harness(full_size=512, swa_size=512, chunk=64)
    h.add("a", prompt_of(50), 40)
    h.step()
    h.step()
    h.add("b", prompt_of(50) + prompt_of(5, seed=1), 4)
    h.run()
    assert h.received["b"].finals[0].report.cached_tokens == 50
    check(h, "a", prompt_of(50), 40)
    check(h, "b", prompt_of(50) + prompt_of(5, seed=1), 4)


@pytest.mark.parametrize("shared,own", [(30, 20), (16, 40), (33, 60), (3, 60), (80, 9)])
@pytest.mark.parametrize("at_once", [False, True])
def test_what_long_prompts_share_is_reused_by_the_third(shared: int, own: int, at_once: bool):
    """The first frees its sliding slots at the branch as it goes on, the second meets the branch and leaves it usable;
    `at_once`: the third comes while the second is still computing its own part."""
    h = Harness(full_size=1024, swa_size=128, chunk=16)
    prompts = [prompt_of(shared) + prompt_of(own, seed=i) for i in range(4)]
    for name, prompt in zip("abcd", prompts, strict=True):
        h.add(name, prompt, 4)
        if name == "b" and at_once:
            while h.scheduler.running == [] or h.scheduler.running[0].computed < shared:
                h.step()
        else:
            h.run()
    for name, prompt in zip("abcd", prompts, strict=True):
        check(h, name, prompt, 4)
    reused = [h.received[name].finals[0].report.cached_tokens for name in "abcd"]
    kept = own < 16 and shared % 16 + own <= 16  # the branch lay in the last chunk: its window was still there
    assert reused == [0, shared if kept else 0, shared, shared]


def test_a_branch_inside_a_prefix_is_reused_once_it_has_been_met():
    """Prompts that follow a cached one for 60 tokens, and later ones that leave it after 35."""
    h = Harness(full_size=1024, swa_size=128, chunk=16)
    long, other = prompt_of(100), prompt_of(35) + prompt_of(50, seed=1)
    other[:35] = long[:35]
    third = long[:35] + prompt_of(40, seed=2)
    for name, prompt in (("a", long), ("b", other), ("c", third), ("d", long)):
        h.add(name, prompt, 4)
        h.run()
        check(h, name, prompt, 4)
    assert [h.received[name].finals[0].report.cached_tokens for name in "abcd"] == [0, 0, 35, 99]


def test_same_prompt_twice_in_one_step_keeps_one_copy():
    h = Harness(full_size=512, swa_size=512, chunk=128)
    h.add("a", prompt_of(50), 10)
    h.add("b", prompt_of(50), 10)
    h.run()
    check(h, "a", prompt_of(50), 10)
    check(h, "b", prompt_of(50), 10)
    assert h.kv.usage()["full_cached"] <= 60  # 50 of the prompt and the output, not 100


def test_extra_key_keeps_prefixes_apart():
    h = Harness()
    h.add("a", prompt_of(30), 2, extra_key="x")
    h.run()
    h.add("b", prompt_of(30), 2, extra_key="y")
    h.run()
    h.add("c", prompt_of(30), 2, extra_key="x")
    h.run()
    assert h.received["b"].finals[0].report.cached_tokens == 0
    assert h.received["c"].finals[0].report.cached_tokens == 29


def test_cache_off_reuses_nothing():
    h = Harness(cache=False)
    for rid in "ab":
        h.add(rid, prompt_of(30), 5)
        h.run()
        check(h, rid, prompt_of(30), 5)
    assert h.received["b"].finals[0].report.cached_tokens == 0 and h.kv.usage()["full_cached"] == 0


def test_lpm_serves_the_longest_cached_prefix_first():
    h = Harness(rows=1, policy="lpm", full_size=512, swa_size=512, max_len=128, chunk=128)
    h.add("warm", prompt_of(40), 1)
    h.run()
    h.add("busy", prompt_of(3, seed=3), 3)
    h.step()
    h.add("cold", prompt_of(30, seed=1), 1)
    h.add("hot", prompt_of(40), 1)
    finished = []
    while not (h.scheduler.is_idle and not h.inbox):
        h.step()
        finished += [r for r in ("cold", "hot") if r in h.received and h.received[r].finals and r not in finished]
    assert finished == ["hot", "cold"]


@pytest.mark.parametrize("start", [0, 1, 7, 19, 20, 25])
@pytest.mark.parametrize("chunk", [4, 64])
def test_prompt_logprobs_cover_the_asked_tokens(start: int, chunk: int):
    prompt = prompt_of(20)
    h = Harness(chunk=chunk)
    for rid in "ab":  # the second could use the first one's cache
        h.add(rid, prompt, 3, return_logprob=True, logprob_start_len=start)
        h.run()
        got = h.received[rid]
        values = [None if (i == 0 and start == 0) else -float(t) for i, t in enumerate(prompt)][start:]
        assert got.prompt_logprobs.values == values and got.prompt_logprobs.ids == prompt[start:]
        assert got.logprobs == [-float(t) for t in got.ids] and len(got.ids) == 3


def test_prompt_logprobs_survive_retraction():
    h = Harness(full_size=60, swa_size=60, rows=3, chunk=5, max_len=60, conservativeness=0.1)
    for i, rid in enumerate("abc"):
        h.add(rid, prompt_of(18, seed=i), 25, return_logprob=True, logprob_start_len=0)
    h.run()
    assert sum(r.finals[0].report.num_retractions for r in h.received.values()) > 0
    for i, rid in enumerate("abc"):
        check(h, rid, prompt_of(18, seed=i), 25)
        assert h.received[rid].prompt_logprobs.values[1:] == [-float(t) for t in prompt_of(18, seed=i)[1:]]
        assert len(h.received[rid].logprobs) == 25


def test_refusals_leave_others_alone():
    h = Harness(max_queued=2, rows=1)
    h.add("ok", prompt_of(10), 5)
    h.step()
    h.add("empty", [])
    h.add("long", prompt_of(128))
    h.add("bad", [5, VOCAB])
    h.add("negative", [-1])
    h.step()
    for rid in ("empty", "long", "bad", "negative"):
        assert h.received[rid].finals[0].finish.status_code == 400
    for i in range(3):
        h.add(f"q{i}", prompt_of(4), 2)
    h.step()
    assert h.received["q2"].finals[0].finish.status_code == 503
    h.run()
    assert len(h.received["q0"].ids) == 2
    check(h, "ok", prompt_of(10), 5)


def test_a_sliding_pool_below_one_request_is_refused():
    with pytest.raises(ValueError, match="256 full or 50 sliding tokens, one request may need 128 and 128"):
        Harness(swa_size=50, window=64)


def test_zero_new_tokens_computes_the_prompt_only():
    h = Harness()
    h.add("a", prompt_of(20), 0, return_logprob=True, logprob_start_len=0)
    h.run()
    assert h.received["a"].ids == [] and h.received["a"].finals[0].finish.type == "length"
    assert len(h.received["a"].prompt_logprobs.values) == 20


def test_output_ends_at_the_context():
    h = Harness(max_len=64)
    h.add("a", prompt_of(60), 1000)
    h.run()
    check(h, "a", prompt_of(60), 4)


def test_flush_only_when_idle_and_state_counts():
    h = Harness()
    h.add("a", prompt_of(30), 30)
    h.step()
    h.inbox += [FlushCacheReq("f1"), InternalStateReq("s")]
    h.step()
    busy, state = h.other
    assert isinstance(busy, FlushCacheReply) and not busy.success and "running" in busy.message
    assert isinstance(state, InternalStateReply) and state.state["num_running_reqs"] == 1
    h.run()
    assert h.kv.usage()["full_cached"] > 0
    h.inbox.append(FlushCacheReq("f2"))
    h.step()
    assert h.other[-1].success and h.kv.usage()["full_cached"] == 0


def test_flush_that_waits_is_answered_when_nothing_runs():
    h = Harness()
    h.add("a", prompt_of(30), 30)
    h.inbox += [FlushCacheReq("f1", wait=True), FlushCacheReq("f2", wait=True)]
    h.step()
    assert h.other == []
    h.inbox += [EndFlushReq("f1"), EndFlushReq("unknown")]
    h.step()
    assert [(m.call_id, m.success) for m in h.other] == [("f1", False)]
    assert "1 requests are running" in h.other[0].message
    h.run()
    assert [(m.call_id, m.success) for m in h.other[1:]] == [("f2", True)]
    assert h.kv.usage()["full_cached"] == 0
    h.inbox += [FlushCacheReq("f3", wait=True), EndFlushReq("f3")]  # nothing runs: at once, and once
    h.step()
    assert [(m.call_id, m.success) for m in h.other[2:]] == [("f3", True)]


def test_non_streaming_requests_are_not_sent_every_token():
    h = Harness()
    h.add("a", prompt_of(10), 40)
    messages = []
    send = h.scheduler.send
    h.scheduler.send = lambda m: (messages.append(m), send(m))
    h.run()
    assert len(messages) == 2  # the first token and the last ones


def test_a_leak_is_noticed_when_idle():
    h = Harness()
    h.kv.full.alloc(1)
    h.add("a", prompt_of(4), 1)
    with pytest.raises(AssertionError):
        h.run()


def test_the_whole_tree_is_checked_after_a_second_of_idleness_only():
    """Going through a large tree takes tenths of a second, which the next request of a patient client would pay."""
    h = Harness()
    parts: list[str] = []

    def checks():
        parts.append("first")
        yield
        parts.append("last")

    h.kv.deep_checks = checks
    waits = []
    h.scheduler.receive = lambda block, receive=h.scheduler.receive: waits.append(block) or receive(block)
    for name in "ab":
        h.add(name, prompt_of(20), 3)
        while h.inbox or not h.scheduler.is_idle:
            h.step()
    assert not parts
    h.step()  # nothing came for a second
    assert parts == ["first"]
    h.inbox.append(InternalStateReq("s"))
    h.step()  # what comes between two parts is answered, and the check begins again
    h.step()
    h.step()
    assert parts == ["first", "first", "last"]
    with pytest.raises(AssertionError, match="wait for ever"):  # from now on it waits for a message
        h.step()
    assert len(parts) == 3 and waits[-5:] == [1.0, 0.001, 1.0, 0.001, True]


def test_requests_are_looked_for_once_in_some_steps_and_at_once_when_idle():
    h = Harness()
    asked = []
    h.scheduler.receive = once_in(4, lambda block, receive=h.scheduler.receive: asked.append(block) or receive(block))
    h.add("a", prompt_of(10), 20)
    h.run()
    check(h, "a", prompt_of(10), 20)
    assert asked[0] and sum(not block for block in asked) in (5, 6)  # 21 or 22 steps with work in hand


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
