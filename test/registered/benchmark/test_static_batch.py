"""StaticBatch over a worker that checks every slot: its tokens are those of requests served alone, nothing leaks."""

import sys

import numpy as np
import pytest

from sglang.benchmark.static_batch import StaticBatch
from sglang.srt.managers.kv_manager import KVManager
from sglang.srt.mem_cache.arena import ArenaShape
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.fake_worker import ContextWorker, expected_output

register_cpu_ci(est_time=2, suite="unit-test-cpu")

VOCAB, ROWS, MAX_LEN = 1000, 4, 64


def make(full_size: int = 256, swa_size: int = 256, window: int | None = 8, cache: bool = True):
    shape = ArenaShape.apart(full_size, swa_size if window else 0)
    worker = ContextWorker(shape, window, ROWS, MAX_LEN, VOCAB)
    return worker, KVManager(shape, window, ROWS, MAX_LEN, enable_cache=cache)


def prompts(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, length) for length in lengths]


def run(worker: ContextWorker, batch: StaticBatch, output_len: int) -> list[list[int]]:
    """Each request's tokens. A prompt's first token comes with the step that ends it."""
    with batch:
        first = [ids[0] for step in batch.prefill_steps() for ids in worker.submit(step).result().next_ids]
        columns = [first]
        columns += [
            [ids[0] for ids in worker.submit(batch.decode_step()).result().next_ids] for _ in range(output_len - 1)
        ]
    return [list(tokens) for tokens in zip(*columns, strict=True)]


@pytest.mark.parametrize("chunk", [-1, 1, 5, 16, 1000])
@pytest.mark.parametrize("window", [None, 2, 8])
@pytest.mark.parametrize("cache", [False, True])
def test_tokens_are_those_of_a_request_alone(chunk, window, cache):
    worker, kv = make(window=window, cache=cache)
    for seed in range(3):
        given = prompts(3, 17, 1, 30, seed=seed)
        got = run(worker, StaticBatch(kv, given, chunk), 20)
        assert got == [expected_output(prompt.tolist(), 20, VOCAB) for prompt in given]
        kv.check_idle()
    if not cache:
        assert kv.full.available() == kv.full_size
        assert kv.swa is None or kv.swa.available() == kv.swa_size


def test_prompts_start_from_the_cache():
    worker, kv = make()
    given = prompts(12, 20)
    run(worker, StaticBatch(kv, [prompt[:7] for prompt in given], 16), 1)
    before = worker.prefill_tokens
    batch = StaticBatch(kv, given, 16)
    assert run(worker, batch, 9) == [expected_output(prompt.tolist(), 9, VOCAB) for prompt in given]
    assert [req.report.cached_tokens for req in batch.reqs] == [7, 7]
    assert worker.prefill_tokens - before == 5 + 13
    kv.check_idle()


def test_chunks_keep_to_their_size():
    _, kv = make(cache=False)
    with StaticBatch(kv, prompts(10, 10, 10), 8) as batch:
        steps = list(batch.prefill_steps())
        assert [int(step.extend_lens.sum()) for step in steps] == [8, 8, 8, 6]
        assert [len(step.sampled) for step in steps] == [0, 1, 1, 1]
        decode = batch.decode_step()
        assert (decode.num_extends, len(decode.rows)) == (0, 3)


@pytest.mark.parametrize("chunk", [-1, 4])
def test_prompts_beside_decodes(chunk):
    worker, kv = make()
    early, late = prompts(5, 9), prompts(11, 3, seed=1)
    with StaticBatch(kv, early, -1) as decodes, StaticBatch(kv, late, chunk) as batch:
        got = [[ids[0] for step in decodes.prefill_steps() for ids in worker.submit(step).result().next_ids]]
        first = []
        for step in batch.prefill_steps(beside=decodes):
            assert len(step.rows) - step.num_extends == 2
            ids = [ids[0] for ids in worker.submit(step).result().next_ids]
            first, got = first + ids[:-2], [*got, ids[-2:]]
        assert len(got) == (2 if chunk == -1 else 5)
        got.append([ids[0] for ids in worker.submit(decodes.decode_step()).result().next_ids])
    assert [[token] for token in first] == [expected_output(prompt.tolist(), 1, VOCAB) for prompt in late]
    for tokens, prompt in zip(zip(*got, strict=True), early, strict=True):
        assert list(tokens) == expected_output(prompt.tolist(), len(got), VOCAB)
    kv.check_idle()


def test_log_probabilities_when_asked():
    _, kv = make()
    with StaticBatch(kv, prompts(4), -1, top_logprobs=5) as batch:
        [step] = batch.prefill_steps()
        assert step.output_logprobs == [(5, None)]
    with StaticBatch(kv, prompts(4), -1) as batch:
        [step] = batch.prefill_steps()
        assert step.output_logprobs is None


@pytest.mark.parametrize(
    ("pools", "lengths", "output_len"),
    [
        ({"full_size": 64}, (30, 30), 4),  # full slots end while decoding
        ({"full_size": 64}, (40, 40), 1),  # ... in the prefill
        ({"swa_size": 60}, (30, 30, 30), 1),  # sliding slots
        ({}, (2,) * (ROWS + 1), 1),  # rows
    ],
)
@pytest.mark.parametrize("cache", [False, True])
def test_what_does_not_fit_is_said_and_given_back(pools, lengths, output_len, cache):
    _, kv = make(**pools, cache=cache)
    with pytest.raises(ValueError, match="does not fit KV memory.*raise --max-total-tokens"):
        with StaticBatch(kv, prompts(*lengths), -1) as batch:
            list(batch.prefill_steps())
            for _ in range(output_len - 1):
                batch.decode_step()
    kv.check_idle()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
