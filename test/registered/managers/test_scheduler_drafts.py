"""The scheduler when decode steps verify drafts, on a worker that accepts random parts and checks every slot."""

import random
import sys

import pytest

from sglang.srt.managers.io_struct import InternalStateReq
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.fake_worker import expected_output
from sglang.test.scheduler_harness import VOCAB, Harness, feed_sharing_requests, prompt_of

register_cpu_ci(est_time=4, suite="unit-test-cpu")


def make(**settings) -> Harness:
    return Harness(**{"mixed": False, "overlap": False, "decode_tokens": 6} | settings)


def check(h: Harness, rid: str, prompt: list[int], count: int) -> None:
    got = h.received[rid]
    assert got.ids == expected_output(prompt, count, VOCAB)
    (final,) = got.finals
    assert final.finish.type == "length"
    drafts = sum(final.report.verified_drafts or [])
    correct = sum(n * times for n, times in enumerate(final.report.verified_drafts or []))
    # A prompt's step gives one token (again after a retraction), each draft what it got right and one more; the last
    # may hold more than fits.
    assert count - final.report.num_retractions <= 1 + correct + drafts <= count + h.kv.decode_tokens - 1


@pytest.mark.parametrize("tokens", [2, 4, 12])
@pytest.mark.parametrize("length,chunk", [(1, 16), (17, 16), (60, 3), (60, -1), (100, 7)])
def test_one_request(length: int, chunk: int, tokens: int):
    h = make(chunk=chunk, decode_tokens=tokens)
    h.add("a", prompt_of(length), 20)
    h.run()
    check(h, "a", prompt_of(length), 20)


@pytest.mark.parametrize("window", [None, 2, 8, 64])
@pytest.mark.parametrize("policy", ["fcfs", "lpm"])
def test_many_requests_under_pressure(window: int | None, policy: str):
    """Chunks, shared prefixes, evictions, retractions and rejected slots in pools far too small for all."""
    rng = random.Random(f"{window}{policy}")
    h = make(
        full_size=150, swa_size=max(110, 2 * (window or 0) + 70), window=window, rows=6, chunk=12, policy=policy,
        conservativeness=0.5,
    )  # fmt: skip
    wanted = feed_sharing_requests(h, rng)
    for rid, (prompt, count) in wanted.items():
        check(h, rid, prompt, count)
    assert h.scheduler.stats.retractions > 0, "the test is meant to run out of slots"
    assert any(r.finals[0].report.cached_tokens > 0 for r in h.received.values())
    h.kv.check_idle()


def test_random_aborts_and_stops_leak_nothing():
    rng = random.Random(5)
    h = make(full_size=200, swa_size=140, rows=5, chunk=10)
    alive: list[str] = []
    for i in range(300):
        if rng.random() < 0.3:
            h.add(f"r{i}", prompt_of(rng.randrange(1, 60), i % 7), rng.randrange(1, 60))
            alive.append(f"r{i}")
        if alive and rng.random() < 0.2:
            rng.choice([h.abort, h.stop])(alive.pop(rng.randrange(len(alive))))
        if h.inbox or not h.scheduler.is_idle:
            h.step()
    h.run()
    assert all(len(r.finals) == 1 for r in h.received.values())
    h.kv.check_idle()


def test_a_stop_token_inside_a_draft_ends_the_request_there():
    for seed in range(40):
        prompt = prompt_of(9, seed)
        ids = expected_output(prompt, 20, VOCAB)
        h = make()
        h.add("a", prompt, 20, params={"stop_token_ids": [ids[7]]})
        h.run()
        got = h.received["a"]
        end = ids.index(ids[7]) + 1
        assert got.ids == ids[:end] and got.finals[0].finish.matched == ids[7]
        h.kv.check_idle()


def test_logprobs_belong_to_their_tokens():
    h = make()
    h.add("a", prompt_of(9), 25, return_logprob=True)
    h.add("b", prompt_of(12), 25)
    h.run()
    assert h.received["a"].logprobs == [-float(token) for token in h.received["a"].ids]
    assert h.received["b"].logprobs == [] and len(h.received["b"].ids) == 25


def test_output_ends_at_the_context_and_the_pool():
    """The last draft reaches beyond the longest request there can be; a pool that has no slots for that is refused."""
    h = make(full_size=69, swa_size=69, max_len=64, chunk=16)
    h.add("a", prompt_of(50), 1000)
    h.run()
    check(h, "a", prompt_of(50), 14)
    h.kv.check_idle()
    with pytest.raises(ValueError, match="68 full or 69 sliding tokens, one request may need 69 and"):
        make(full_size=68, swa_size=69, max_len=64)
    with pytest.raises(ValueError, match="29 sliding tokens, one request may need 133 and 30"):
        make(swa_size=29)


def test_accept_length_is_exact_at_any_time():
    h = make()
    for i in range(3):
        h.add(f"r{i}", prompt_of(9, i), 30)
    for _ in range(4):
        h.step()
    h.inbox.append(InternalStateReq("x"))
    h.step()
    (reply,) = h.other
    stats = h.scheduler.stats
    assert stats.verified == sum(sum(r.report.verified_drafts or []) for r in h.scheduler.running)
    assert "avg_spec_accept_length" not in reply.state  # this harness' stats know nothing of drafts
    stats.num_draft_steps = 5
    assert stats.state()["avg_spec_accept_length"] == stats.accepted_tokens / stats.verified > 1
    h.run()
    histograms = [h.received[f"r{i}"].finals[0].report.verified_drafts for i in range(3)]
    assert stats.verified == sum(map(sum, histograms))
    correct = sum(n * times for histogram in histograms for n, times in enumerate(histogram))
    assert stats.accepted_tokens == stats.verified + correct


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
