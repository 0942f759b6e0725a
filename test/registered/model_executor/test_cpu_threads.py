"""Threads on a CPU: one pool that loads and computes, as many threads as the trial says, OMP_NUM_THREADS above it."""

import logging
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from sglang.srt.managers.tp_worker import ThreadWorker
from sglang.srt.model_executor import cpu_threads
from sglang.srt.sampling.sampling_flags import SamplingFlags
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=5, suite="base-a-test-cpu")


class Runner:
    """Takes `seconds[threads]` for a step, by the test's clock, of each batch size or of all; `others` are another
    rank's votes, in order."""

    def __init__(self, clock, seconds: dict[int, float | dict[int, float]], others: list[int] | None = None):
        self.clock, self.seconds, self.others = clock, seconds, others
        self.tp = self
        self.steps: list[tuple[int, int]] = []  # threads, batch size
        self.cpu_threads = None
        self.config = SimpleNamespace(dtype="bfloat16")

    def minimum(self, value: int) -> int:
        return min(value, self.others.pop(0)) if self.others else value

    def decode(self, numbers, seq_lens):
        assert numbers.shape == (4, len(seq_lens)) and seq_lens == numbers[1].tolist()
        self.steps.append((torch.get_num_threads(), len(seq_lens)))
        seconds = self.seconds[torch.get_num_threads()]
        self.clock.now += seconds[len(seq_lens)] if isinstance(seconds, dict) else seconds


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

    monkeypatch.setattr(cpu_threads.time, "perf_counter", lambda: Clock.now)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    yield Clock
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "seconds,chosen",
    [
        ({1: 0.010, 2: 0.006}, 2),
        ({1: 0.006, 2: 0.010}, 1),
        ({1: 0.010, 2: 0.0095}, 1),  # too little to gain
        ({1: 3.0, 2: 1.1}, 2),
        ({1: {1: 0.010, 8: 0.040}, 2: {1: 0.006, 8: 0.042}}, 2),  # one request gains more than eight lose
        ({1: {1: 0.010, 8: 0.040}, 2: {1: 0.016, 8: 0.032}}, 1),
        ({1: 0.006, 2: 3.0}, 1),  # another program has the second core
    ],
)
def test_the_faster_number_is_taken(clock, caplog, seconds, chosen):
    runner = Runner(clock, seconds)
    with caplog.at_level(logging.INFO):
        cpu_threads.choose(runner, 2)
    assert runner.cpu_threads == torch.get_num_threads() == chosen
    assert f"cpu_threads = {chosen} (a trial of 1 and 8 requests: " in caplog.text
    assert "arithmetic = bfloat16 on " in caplog.text
    assert {size for _, size in runner.steps} == set(cpu_threads.BATCH_SIZES)
    rounds = 1 if 3.0 in seconds.values() else cpu_threads.ROUNDS
    assert len(runner.steps) == (rounds + 1) * 2 * len(cpu_threads.BATCH_SIZES)


@pytest.mark.parametrize("others,rounds,chosen", [([9] * 7 + [1], 7, 1), ([0, 2], 1, 2), ([0, 1], 1, 1)])
def test_ranks_take_the_same_number_and_the_same_steps(clock, others, rounds, chosen):
    runner = Runner(clock, {1: 0.010, 2: 0.006}, others)
    cpu_threads.choose(runner, 2)
    assert len(runner.steps) == (rounds + 1) * 4
    assert runner.cpu_threads == chosen


def test_one_core_needs_no_trial(clock):
    runner = Runner(clock, {})
    cpu_threads.choose(runner, 1)
    assert runner.cpu_threads == 1 and not runner.steps


def test_what_the_user_set_stays(clock, monkeypatch, caplog):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)  # as torch does when it finds the variable
    runner = Runner(clock, {})
    assert cpu_threads.limit(8) == 2
    with caplog.at_level(logging.INFO):
        cpu_threads.choose(runner, 2)
    assert runner.cpu_threads == torch.get_num_threads() == 2 and not runner.steps
    assert "cpu_threads = 2 (OMP_NUM_THREADS)" in caplog.text


@pytest.mark.parametrize("cores,ranks,threads", [(8, 1, 3), (2, 1, 2), (8, 4, 2), (2, 4, 1)])
def test_ranks_share_the_cores(clock, monkeypatch, cores, ranks, threads):
    monkeypatch.setattr(cpu_threads.host, "cores", lambda: cores)
    torch.set_num_threads(3)
    assert cpu_threads.limit(ranks) == torch.get_num_threads() == threads


def test_the_runner_is_made_on_the_thread_that_runs_it():
    """Two threads that compute would have two pools of cores."""
    threads = []

    class Made:
        def __init__(self):
            threads.append(threading.current_thread())

        def launch(self, step):
            threads.append(threading.current_thread())
            return type("Launched", (), {"result": lambda self: step})()

    worker, step = ThreadWorker(Made), SimpleNamespace(flags=SamplingFlags(0))
    assert worker.submit(step).result() is step
    assert threads[0] is threads[1] is not threading.current_thread()


@pytest.mark.parametrize("error", [ValueError("no such model"), SystemExit(3)])
def test_a_runner_that_cannot_be_made_is_told(error):
    def make():
        raise error

    with pytest.raises(type(error)):
        ThreadWorker(make)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
