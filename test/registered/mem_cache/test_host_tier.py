"""The host tier: what it keeps, what a step waits for, and that every slot of both memories holds what was computed,
however late copies are carried out."""

import sys

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sglang.srt.managers.io_struct import AbortReq, FlushCacheReply, FlushCacheReq
from sglang.srt.mem_cache.arena import ArenaShape
from sglang.srt.mem_cache.host_tier import LEAST_PIECE, HostTier
from sglang.srt.mem_cache.slot_copies import SlotBatches
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.fake_worker import SlotMemory, expected_output
from sglang.test.scheduler_harness import VOCAB, Harness, prompt_of

register_cpu_ci(est_time=20, suite="unit-test-cpu")

NONE = np.zeros(0, dtype=np.int32)
CARD = ArenaShape(60, 8, 4, 480, 240, 4)


def slots(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.int32)


def tier(pages: int = 30, window: int | None = 4) -> HostTier:
    card = CARD if window else CARD._replace(swa_per_page=0)
    return HostTier(card._replace(num_pages=pages, full_size=8 * pages, swa_size=4 * pages), card, window, (10, 100))


def put(host: HostTier, ids: list[int], first: int = 100, live_from: int = 0) -> None:
    """Store `ids`, which lie in slots from `first` on, with sliding ones from position `live_from` on."""
    swa = slots(first, len(ids))
    swa[:live_from] = 0
    host.store(np.array(ids), None, slots(first, len(ids)), swa)
    host.check(idle=False)


# ---- what is kept ----


def test_all_tokens_and_the_last_window_are_copied_once():
    host = tier()
    put(host, list(range(10)))
    (copy,) = host.take().out
    assert copy.full.tolist() == list(range(100, 110)) and copy.swa.tolist() == list(range(106, 110))
    assert len(set(copy.host_full.tolist())) == 10 and len(set(copy.host_swa.tolist())) == 4
    put(host, list(range(10)))
    assert host.take() is None  # it is here already
    put(host, list(range(14)), live_from=11)
    (copy,) = host.take().out
    assert copy.full.tolist() == list(range(110, 114)) and copy.swa.tolist() == [111, 112, 113]
    assert host.usage()["host_stored_tokens_total"] == host.usage()["host_cached"] == 14


def test_a_prefix_comes_back_where_the_card_has_less():
    host = tier()
    put(host, list(range(10)))
    ids = np.arange(30)
    assert host.find(ids, "other", 0) is None and host.find(ids, None, 10) is None
    load = host.find(ids, None, 3)
    assert (load.start, load.length, load.swa_from) == (3, 10, 7)
    assert [load.swa_tokens(*span) for span in ((3, 7), (3, 8), (8, 10))] == [0, 1, 2]
    copy = host.take().out[0]
    assert load.full_slots.tolist() == copy.host_full.tolist()
    assert load.swa_slots[7:].tolist() == copy.host_swa[1:].tolist()
    swa = np.array([0, 0, 0, 0, 5, 6, 7], dtype=np.int32)
    host.begin(load)
    assert host.load(load, 3, slots(50, 7), swa) == 2
    host.end(load)
    batch = host.take()
    (back,) = batch.back
    assert (batch.batch, batch.needs, batch.out) == (2, 0, [])
    assert back.full.tolist() == list(range(50, 57)) and back.host_full.tolist() == load.full_slots[3:].tolist()
    assert back.swa.tolist() == [5, 6, 7] and back.host_swa.tolist() == load.swa_slots[7:].tolist()
    host.check()


def test_for_a_few_tokens_no_window_comes_back():
    host = tier(window=40)
    put(host, list(range(20)))
    assert host.find(np.arange(30), None, 11) is None
    assert host.find(np.arange(30), None, 10).length == 20


def test_the_least_recently_used_prefix_makes_room():
    host = tier(pages=6, window=None)  # 48 tokens
    for i in range(3):
        put(host, [i, *range(100, 115)])
    assert host.length(np.array([0, *range(100, 115)]), None) == 16  # used now
    put(host, [3, *range(100, 115)])
    assert [host.length(np.array([i, *range(100, 115)]), None) for i in range(4)] == [16, 0, 16, 16]


def test_what_can_never_fit_drives_nothing_out():
    host = tier(pages=6, window=None)
    put(host, list(range(16)))
    put(host, [7, *range(100, 160)])
    assert host.usage()["host_cached"] == 16
    load = host.find(np.arange(16), None, 0)
    host.begin(load)
    put(host, [7, *range(100, 140)])  # its room is locked
    assert host.usage()["host_cached"] == 16
    host.end(load)
    put(host, [7, *range(100, 140)])
    assert host.usage()["host_cached"] == 41


def test_a_prefix_that_drives_out_its_own_beginning_is_copied_whole():
    host = tier(pages=6, window=None)
    put(host, [1, *range(100, 119)])
    put(host, [1, *range(100, 110), *range(20)])
    host.take()
    put(host, [1, *range(100, 119), *range(28)])
    assert host.length(np.array([1, *range(100, 119), *range(28)]), None) == 48


def test_a_piece_is_what_so_many_bytes_hold():
    host = tier(pages=100)
    put(host, list(range(200)), first=20)
    load = host.find(np.arange(300), None, 0)
    assert load.swa_from == 197
    assert host.piece(load, 0, 1000) == 100 and host.piece(load, 0, 10**6) == 200
    assert host.piece(load, 100, 970 + 110) == 98 and host.piece(load, 100, 0) == LEAST_PIECE
    assert host.piece(load, 190, 0) == 10


# ---- what waits for what ----


def test_who_overwrites_a_slot_waits_for_the_copy_that_reads_it():
    host = tier(window=None)
    put(host, list(range(10)))
    host.overwrite(slots(90, 10), NONE)
    host.read(slots(100, 10), NONE)
    first = host.take()
    assert (first.batch, first.needs) == (1, 0)
    put(host, [5, 6, 7], first=50)
    host.overwrite(slots(109, 5), NONE)
    second = host.take()
    assert (second.batch, second.needs) == (2, 1)
    host.overwrite(slots(50, 1), NONE)
    assert host.take().needs == 2  # a batch of its own it has not
    assert host.take() is None


@pytest.mark.parametrize("verb", ["read", "overwrite"])
def test_who_reads_or_overwrites_a_slot_waits_for_the_copy_that_fills_it(verb: str):
    host = tier(window=None)
    put(host, list(range(10)))
    load = host.find(np.arange(10), None, 0)
    host.begin(load)
    host.load(load, 0, slots(50, 10), np.zeros(10, dtype=np.int32))
    getattr(host, verb)(slots(59, 3), NONE)
    assert host.take().needs == 1
    getattr(host, verb)(slots(60, 3), NONE)
    assert host.take() is None
    host.end(load)


def test_a_page_that_went_to_the_other_kind_is_waited_for_as_a_whole():
    batches = SlotBatches(CARD)
    batches.mark(slots(16, 1), NONE, 3)  # in page 2
    assert batches.last(slots(17, 7), NONE) == 0 and batches.last(slots(16, 8), NONE) == 3
    assert batches.last(NONE, slots(11, 1)) == 3 and batches.last(NONE, slots(12, 1)) == 0
    batches.mark(NONE, slots(11, 1), 4)
    assert batches.last(slots(20, 1), NONE) == 4 and batches.last(np.zeros(3, dtype=np.int32), NONE) == 0


def test_nothing_is_copied_of_what_was_forgotten():
    host = tier()
    put(host, list(range(10)))
    host.reset()
    assert host.take() is None and host.usage()["host_cached"] == 0
    host.check()


# ---- under a scheduler, with copies that come late ----

ARENAS = {
    "apart": ArenaShape(120, 1, 1, 120, 120),
    "ten to one": ArenaShape(44, 10, 1, 440, 44),
    "runs": ArenaShape(12, 16, 8, 192, 96, 4),
    "full only": ArenaShape(120, 1, 0, 120, 0),
}


def check_all(h: Harness) -> None:
    """At idle, once all copies are through, both trees' slots hold their nodes' tokens."""
    h.kv.check_idle()
    assert h.kv.tier.take() is None, "nothing waits for the next step"
    while h.worker.copies.waiting:
        h.worker.copies.run(None)
    for tree, memory in ((h.kv.cache, h.worker.kv), (h.kv.tier.tree, h.worker.copies.host)):
        for node in tree._nodes():
            content = np.stack([node.tokens, np.arange(node.start, node.end)], axis=1)
            assert np.array_equal(memory.full[node.full], content), "full slots of a prefix hold something else"
            if node.swa is not None:
                assert np.array_equal(memory.swa[node.swa], content), "sliding slots of a prefix hold something else"


class AnyRequests(RuleBasedStateMachine):
    """Requests that go on from each other's tokens, in an arena for a few of them."""

    @initialize(
        shape=st.sampled_from(list(ARENAS.values())),
        host_pages=st.sampled_from([10, 40, 400]),
        overlap=st.booleans(),
        mixed=st.booleans(),
        drafts=st.sampled_from([1, 1, 3]),
    )
    def begin(self, shape: ArenaShape, host_pages: int, overlap: bool, mixed: bool, drafts: int) -> None:
        window = 8 if shape.swa_per_page else None
        self.h = Harness(
            shape=shape, window=window, rows=4, max_len=60, chunk=10, overlap=overlap and drafts == 1,
            mixed=mixed and drafts == 1, conservativeness=0.1, host_pages=host_pages, decode_tokens=drafts,
        )  # fmt: skip
        self.wanted: dict[str, tuple[list[int], int]] = {}
        self.texts = [prompt_of(44, seed=i) for i in range(3)]

    @rule(text=st.integers(0, 20), keep=st.integers(1, 44), own=st.integers(0, 4), count=st.integers(1, 12))
    def add(self, text: int, keep: int, own: int, count: int) -> None:
        name = f"r{len(self.wanted)}"
        prompt = self.texts[text % len(self.texts)][:keep] + prompt_of(own, seed=text)
        self.wanted[name] = prompt, count
        self.texts.append((prompt + expected_output(prompt, count, VOCAB))[:44])
        self.h.add(name, *self.wanted[name])

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.h.inbox or not self.h.scheduler.is_idle:
                self.h.step()

    @rule(which=st.integers(0, 3))
    def abort(self, which: int) -> None:
        if which < len(self.h.scheduler.running):
            self.h.inbox.append(AbortReq(self.h.scheduler.running[which].serial))

    @rule()
    def flush(self) -> None:
        self.h.inbox.append(FlushCacheReq("f"))

    @rule()
    def settle(self) -> None:
        self.h.run()
        check_all(self.h)

    @invariant()
    @precondition(lambda self: hasattr(self, "h"))
    def every_slot_has_one_owner(self) -> None:
        self.h.kv.cache.check(idle=False)
        self.h.kv.tier.check(idle=False)

    def teardown(self) -> None:
        if not hasattr(self, "h"):
            return
        self.settle()
        for name, (prompt, count) in self.wanted.items():
            got = self.h.received[name]
            if got.finals[0].finish.type == "length":
                assert got.ids == expected_output(prompt, count, VOCAB)


TestAnyRequests = AnyRequests.TestCase
TestAnyRequests.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


def round_robin(h: Harness, turns: int = 3, agents: int = 5) -> None:
    """Agents with 40 tokens of history, two at a time: more than the arena holds."""
    for turn in range(turns):
        for i in range(agents):
            h.add(f"{turn}/{i}", prompt_of(40, seed=i) + list(range(3 * turn)), 6)
            if i % 2:
                h.run()
    h.run()
    for name, got in h.received.items():
        turn, i = map(int, name.split("/"))
        assert got.ids == expected_output(prompt_of(40, seed=i) + list(range(3 * turn)), 6, VOCAB)


def cached(h: Harness) -> int:
    return sum(got.finals[0].report.cached_tokens for got in h.received.values())


def test_agents_find_their_histories_again():
    without, beside = (Harness(shape=ARENAS["apart"], max_len=60, host_pages=pages) for pages in (0, 500))
    for h in (without, beside):
        round_robin(h)
    assert cached(without) < 100 and cached(beside) > 350
    assert beside.worker.prefill_tokens < 250 < 500 < without.worker.prefill_tokens
    usage = beside.kv.usage()
    assert usage["host_loaded_tokens_total"] > 250 and usage["host_cached"] > 200
    assert "host_cached" not in without.kv.usage()
    check_all(beside)


class Ignoring(HostTier):
    """Does not tell steps what they wait for."""

    def wait_for(self, batch: int) -> None:
        pass


class WithoutWindows(HostTier):
    """Copies no sliding slots."""

    def load(self, load, start, full_slots, swa_slots):
        return super().load(load, start, full_slots, np.zeros_like(swa_slots))


@pytest.mark.parametrize("wrong", [Ignoring, WithoutWindows])
def test_a_wrong_tier_is_noticed(wrong):
    """Negative controls of the worker whose copies come late."""
    h = Harness(shape=ARENAS["apart"], max_len=60, host_pages=500)
    h.kv.tier.__class__ = wrong
    with pytest.raises(AssertionError, match="slots"):
        round_robin(h)


def recorded(h: Harness) -> list:
    """The steps of a harness, as they are submitted."""
    steps, submit = [], h.worker.submit
    h.worker.submit = lambda step: steps.append(step) or submit(step)
    return steps


def with_prefix_on_the_host(**settings) -> tuple[Harness, list[int]]:
    """A harness whose host tier alone has a prompt of 60 tokens."""
    h = Harness(window=None, max_len=400, host_pages=500, **settings)
    prompt = prompt_of(300)
    h.add("first", prompt, 1)
    h.run()
    h.kv.cache.reset()
    return h, prompt


def test_beside_others_a_prefix_comes_in_pieces_that_no_step_waits_for():
    h, prompt = with_prefix_on_the_host(full_size=512)
    h.add("other", prompt_of(5, seed=1), 60)
    h.step()
    steps = recorded(h)
    h.add("again", prompt + [1, 2], 4)
    h.run()
    assert h.received["again"].ids == expected_output(prompt + [1, 2], 4, VOCAB)
    assert h.received["again"].finals[0].report.cached_tokens == 300
    back = [(i, sum(len(c.full) for c in s.copies.back)) for i, s in enumerate(steps) if s.copies and s.copies.back]
    assert len(back) > 3 and sum(count for _, count in back) == 300
    assert max(count for _, count in back) <= LEAST_PIECE
    assert [i for i, _ in back] == list(range(len(back))), "a piece in every step"
    assert all(len(step.rows) > 0 for step in steps), "the other request goes on"
    assert all(step.copies.needs < step.copies.batch for step in steps if step.copies and step.copies.back)
    first = next(step for step in steps if step.num_extends)
    assert first.copies.needs == steps[back[-1][0]].copies.batch  # its own tokens, once all have come


def test_alone_a_prefix_comes_at_once():
    h, prompt = with_prefix_on_the_host(full_size=512)
    steps = recorded(h)
    h.add("again", prompt + [1, 2], 1)
    h.run()
    assert steps[0].copies.needs == steps[0].copies.batch and len(steps[0].prefill_ids) == 2
    assert h.received["again"].ids == expected_output(prompt + [1, 2], 1, VOCAB)


def test_who_takes_over_what_another_has_loaded_waits_for_it():
    """One request is aborted when its load is under way, one that computes the same prompt changes over to its slots,
    and one begins with them."""
    h, prompt = with_prefix_on_the_host(full_size=800)
    h.add("other", prompt_of(5, seed=1), 60)
    h.step()
    loader, steps = prompt + [1, 2], recorded(h)
    h.add("loader", loader, 4)
    while not (steps and steps[-1].copies and steps[-1].copies.back) or h.scheduler.running[-1].load is not None:
        h.step()
    loaded = steps[-1].copies.batch
    h.abort("loader")
    h.add("next", loader, 4)
    h.step()
    assert steps[-1].num_extends == 1 and len(steps[-1].prefill_ids) == 2 and steps[-1].copies.needs == loaded
    h.run()
    assert h.received["next"].ids == expected_output(loader, 4, VOCAB)


def test_who_changes_over_to_loaded_slots_waits_for_them():
    """A request that has computed a prompt puts it into the tree, where it has come from the host meanwhile."""
    h, prompt = with_prefix_on_the_host(full_size=800)
    h.kv.tier.least_gain = 10**6
    h.add("computes", prompt + [1, 2], 8)
    h.step()
    h.kv.tier.least_gain = 1
    steps = recorded(h)
    h.add("loads", prompt + [3], 8)
    while h.scheduler.running[-1].load is not None or len(h.scheduler.running) == 1:
        h.step()
    loaded = next(step.copies.batch for step in reversed(steps) if step.copies and step.copies.back)
    assert h.scheduler.running[0].is_prefilling
    h.abort("loads")
    while h.scheduler.running[0].is_prefilling:
        h.step()
    h.step()
    assert steps[-1].table_writes and steps[-1].copies.needs == loaded
    h.run()
    assert h.received["computes"].ids == expected_output(prompt + [1, 2], 8, VOCAB)


@pytest.mark.parametrize("how", ["abort", "retract"])
def test_half_a_load_is_given_up(how: str):
    h, prompt = with_prefix_on_the_host(full_size=512)
    h.add("other", prompt_of(5, seed=1), 30)
    h.step()
    h.add("again", prompt + [1, 2], 4)
    h.step()
    h.step()
    (loading,) = [req for req in h.scheduler.running if req.load is not None]
    assert 0 < loading.computed < 300
    if how == "abort":
        h.abort("again")
    else:
        h.scheduler.retract(loading)
    assert loading.load is None or how == "abort"
    h.run()
    if how == "retract":
        assert h.received["again"].ids == expected_output(prompt + [1, 2], 4, VOCAB)
    assert h.kv.tier.usage()["host_cached"] >= 300
    check_all(h)


def test_loads_that_leave_each_other_no_room_are_retracted():
    """Two prefixes of 300 tokens, half of each on the card: the later one gives its half back."""
    h, prompt = with_prefix_on_the_host(full_size=512)
    other = prompt_of(300, seed=3)
    h.add("second", other, 1)
    h.run()
    h.kv.cache.reset()
    h.add("short", prompt_of(5, seed=1), 8)
    h.step()
    for name, text in (("a", prompt), ("b", other)):
        h.add(name, text + [1, 2], 4)
    h.run()
    for name, text in (("a", prompt), ("b", other)):
        assert h.received[name].ids == expected_output(text + [1, 2], 4, VOCAB)
    check_all(h)


def test_the_books_of_each_memory_are_gone_through():
    h = Harness(host_pages=50)
    h.add("a", prompt_of(20), 3)
    h.run()
    check_all(h)
    for tree in (h.kv.tier.tree, h.kv.cache):
        tree._nodes()[-1].full[0] = tree._nodes()[-1].full[1]
        with pytest.raises(AssertionError, match="cached twice"):
            h.kv.check_idle()
        tree._nodes()[-1].full[0] -= 1


def test_flush_forgets_both_memories():
    h, prompt = with_prefix_on_the_host(full_size=512)
    h.inbox.append(FlushCacheReq("f"))
    h.step()
    assert h.other == [FlushCacheReply("f", True)]
    assert h.kv.usage()["host_cached"] == 0
    h.add("again", prompt, 1)
    h.run()
    assert h.received["again"].finals[0].report.cached_tokens == 0


def test_lpm_counts_what_the_host_has():
    h, prompt = with_prefix_on_the_host(full_size=512, policy="lpm", rows=1)
    h.add("new", prompt_of(20, seed=5), 1)
    h.add("again", prompt + [1, 2], 1)
    while not h.received.get("again"):
        assert "new" not in h.received
        h.step()
    h.run()


def test_slot_memory_forgets_what_shares_its_bytes():
    memory = SlotMemory(CARD)
    memory.write(slots(8, 2), np.full((2, 2), 5), NONE, np.zeros((0, 2)))
    memory.write(NONE, np.zeros((0, 2)), slots(4, 1), np.full((1, 2), 6))
    assert (memory.full[8:10] == -1).all() and (memory.swa[4] == 6).all()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
