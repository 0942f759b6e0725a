"""Are steps that mix prompt chunks with decodes worth it? Two servers, mixing on and off, under the same arrivals.

    python benchmark/scheduler/bench_mixed_chunk.py [--rate 6] [--prompts 80] [--repeats 2]

Random prompts of `--input-len` tokens arrive as a Poisson process; each streams `--output-len` tokens. The servers take
turns (A B A B), one alive at a time. Prints medians over all requests of a setting: time to first token, time per
output token after it, and end to end.
"""

import argparse
import asyncio
import random
import statistics
import time

import httpx

from sglang.test.server_process import ServerProcess


async def one(client: httpx.AsyncClient, ids: list[int], output_len: int, delay: float) -> tuple[float, float, float]:
    await asyncio.sleep(delay)
    params = {"max_new_tokens": output_len, "ignore_eos": True, "temperature": 0}
    body = {"input_ids": ids, "sampling_params": params, "stream": True}
    start, first = time.perf_counter(), 0.0
    async with client.stream("POST", "/generate", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if line.startswith("data: {") and not first:
                first = time.perf_counter()
    end = time.perf_counter()
    return first - start, (end - first) / (output_len - 1), end - start


async def load(url: str, args: argparse.Namespace, seed: int) -> list[tuple[float, float, float]]:
    rng, delay, jobs = random.Random(seed), 0.0, []
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        for _ in range(args.prompts):
            delay += rng.expovariate(args.rate)
            ids = [2, *rng.choices(range(400, 2000), k=args.input_len - 1)]
            jobs.append(one(client, ids, args.output_len, delay))
        return await asyncio.gather(*jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=6.0, help="requests a second")
    parser.add_argument("--prompts", type=int, default=80)
    parser.add_argument("--input-len", type=int, default=300)
    parser.add_argument("--output-len", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    settings = {"mixed": ["--enable-mixed-chunk"], "apart": ["--disable-mixed-chunk"]}
    results: dict[str, list] = {name: [] for name in settings}
    for repeat in range(args.repeats):
        for name, flags in settings.items():
            with ServerProcess("sglang.launch_server", "--log-level", "warning", *flags) as server:
                results[name] += asyncio.run(load(server.url, args, repeat))
    print("setting | TTFT ms | TPOT ms | E2E ms (medians)")
    for name, rows in results.items():
        ttft, tpot, e2e = (statistics.median(column) * 1e3 for column in zip(*rows, strict=True))
        print(f"{name:7s} | {ttft:7.0f} | {tpot:7.1f} | {e2e:6.0f}")


if __name__ == "__main__":
    main()
