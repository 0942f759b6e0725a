"""The load: when each request is sent, how many run at once, and what ends a run early."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sglang.benchmark.datasets import DatasetRow
from sglang.benchmark.metrics import RequestResult

ARRIVALS = 1  # stream of random numbers beside the prompts', so that a rate does not change the prompts


@dataclass(frozen=True)
class Outcome:
    """What came of a run. `stopped` is why it ended early, None if it did not."""

    results: list[RequestResult]  # one a row, in the rows' order
    duration: float  # seconds from the first request until the last answer, or the stop
    stopped: str | None


class Stop:
    """May end a run before its time, for the first reason that is given."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._event = asyncio.Event()

    def set(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()


def arrival_times(count: int, rate: float, seed: int) -> np.ndarray:
    """Seconds after the start at which requests arrive: a Poisson process of `rate` a second whose first request comes
    at 0; all at once when the rate is infinite."""
    if np.isinf(rate):
        return np.zeros(count)
    gaps = np.random.default_rng([seed, ARRIVALS]).exponential(1 / rate, max(0, count - 1))
    return np.concatenate([np.zeros(min(count, 1)), np.cumsum(gaps)])


async def run_load(
    rows: Sequence[DatasetRow],
    arrivals: Sequence[float],
    send: Callable[[DatasetRow, RequestResult], Awaitable[None]],
    stop: Stop,
    max_concurrency: int | None = None,
    on_result: Callable[[RequestResult], None] = lambda result: None,
) -> Outcome:
    """Send every row at its time, at most `max_concurrency` at once (later ones wait in order), until all are answered
    or `stop` is set; then those under way are cancelled and the rest is not sent."""
    results = [RequestResult(row.prompt_len) for row in rows]
    gate = contextlib.nullcontext() if max_concurrency is None else asyncio.Semaphore(max_concurrency)
    start = time.perf_counter()

    async def one(row: DatasetRow, result: RequestResult) -> None:
        async with gate:
            if stop.reason is not None:
                return
            await send(row, result)
        on_result(result)

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            for row, result, at in zip(rows, results, arrivals, strict=True):
                if (wait := start + at - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                group.create_task(one(row, result))

    async with cancelled_at_exit(all_of_them(), stop.wait()) as (sending, stopping):
        await asyncio.wait([sending, stopping], return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
    return Outcome(results, time.perf_counter() - start, stop.reason)


@contextlib.asynccontextmanager
async def cancelled_at_exit(*coroutines: Awaitable) -> AsyncGenerator[list[asyncio.Task], None]:
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
