"""Serves the full-size 26B-A4B with random weights and puts traffic on it: does it start, keep up and leak nothing?

    python benchmark/gemma4/full_size_check.py [--concurrency 1 8 32 64] [--mixed 200] [--long 100000] [-- server flags]

Prints the time to ready, for each concurrency the median times to first token and per token of 1024-in 256-out
requests, then how the mixed and the long requests fared, and whether free + cached = capacity at the end. Needs one
GPU of 80 GB (weights 50 GB). Exit code 1 when a request failed or a slot leaked.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from sglang.srt.utils.child import STARTUP_FAILED

CONFIG = Path(__file__).parent / "configs" / "26b-a4b"
URL = "http://127.0.0.1:30111"
VOCAB = 262144


@dataclass
class Reply:
    tokens: int
    first: float  # seconds from sending to the first token
    total: float
    finish: str


def prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(1000, VOCAB - 4000) for _ in range(length)]


async def ask(client: httpx.AsyncClient, ids: list[int], new_tokens: int) -> Reply:
    params = {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
    started = time.perf_counter()
    first, last = 0.0, {}
    body = {"input_ids": ids, "sampling_params": params, "stream": True}
    async with client.stream("POST", f"{URL}/generate", json=body) as reply:
        if reply.status_code != 200:
            return Reply(0, 0, 0, f"HTTP {reply.status_code}: {(await reply.aread())[:200]!r}")
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - started
                last = json.loads(line[6:])
    meta = last["meta_info"]
    return Reply(meta["completion_tokens"], first, time.perf_counter() - started, meta["finish_reason"]["type"])


async def run_all(prompts: list[tuple[list[int], int]], concurrency: int) -> tuple[list[Reply], float]:
    gate = asyncio.Semaphore(concurrency)

    async def one(client: httpx.AsyncClient, ids: list[int], new_tokens: int) -> Reply:
        async with gate:
            return await ask(client, ids, new_tokens)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=False) as client:
        started = time.perf_counter()
        replies = await asyncio.gather(*(one(client, *p) for p in prompts))
        return replies, time.perf_counter() - started


def failures(replies: list[Reply]) -> list[str]:
    return [r.finish for r in replies if r.finish != "length"]


def traffic(rng: random.Random, concurrency: int, requests: int) -> list[str]:
    replies, seconds = asyncio.run(run_all([(prompt(rng, 1024), 256) for _ in range(requests)], concurrency))
    ttft = statistics.median(r.first for r in replies) * 1e3
    tpot = statistics.median((r.total - r.first) / max(1, r.tokens - 1) for r in replies) * 1e3
    rate = sum(r.tokens for r in replies) / seconds
    print(f"| {concurrency} | {requests} | {ttft:.1f} | {tpot:.2f} | {rate:.0f} |", flush=True)
    return failures(replies)


def leaks() -> list[str]:
    for _ in range(100):
        state = httpx.get(f"{URL}/server_info").json()["internal_states"][0]
        if not state["num_running_reqs"] and not state["num_queue_reqs"]:
            pools = ("full", "swa")
            sums = {p: (state[f"{p}_free"] + state[f"{p}_cached"], state[f"{p}_capacity"]) for p in pools}
            return [f"{p}: {got} of {want} slots" for p, (got, want) in sums.items() if got != want]
        time.sleep(0.1)
    return ["the server does not come to rest"]


def wait_ready(server: subprocess.Popen) -> float:
    started = time.perf_counter()
    while server.poll() is None:
        try:
            if httpx.get(f"{URL}/health").status_code == 200:
                return time.perf_counter() - started
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    if server.wait() == STARTUP_FAILED:
        sys.exit(STARTUP_FAILED)  # it has said why
    sys.exit("the server ended before it was ready")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 8, 32, 64])
    parser.add_argument("--mixed", type=int, default=200, help="requests of 1 to 8192 prompt tokens; 0 for none")
    parser.add_argument("--long", type=int, default=100_000, help="tokens of one long prompt; 0 for none")
    parser.add_argument("server_flags", nargs="*", help="after --")
    args = parser.parse_args()
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(CONFIG), "--load-format", "dummy"]
    command += ["--skip-tokenizer-init", "--port", URL.rsplit(":", 1)[1], *args.server_flags]
    server = subprocess.Popen(command)
    rng, problems = random.Random(0), []
    try:
        print(f"ready after {wait_ready(server):.1f} s")
        print("| concurrency | requests | TTFT p50 ms | TPOT p50 ms | output tok/s |\n|---|---|---|---|---|")
        for concurrency in args.concurrency:
            problems += traffic(rng, concurrency, requests=max(4, 3 * concurrency))
        if args.mixed:
            lengths = [int(2 ** rng.uniform(0, 13)) for _ in range(args.mixed)]
            mixed = [(prompt(rng, n), rng.randrange(1, 200)) for n in lengths]
            replies, seconds = asyncio.run(run_all(mixed, 64))
            problems += failures(replies)
            print(f"{args.mixed} requests of 1 to 8192 tokens: {len(failures(replies))} failed, {seconds:.1f} s")
        if args.long:
            [reply], seconds = asyncio.run(run_all([(prompt(rng, args.long), 16)], 1))
            problems += failures([reply])
            print(f"{args.long} tokens in: first token after {reply.first:.2f} s, {reply.tokens} tokens out")
        problems += leaks()
    finally:
        server.terminate()
        server.wait(30)
    print("\n".join(problems) or "no request failed, no slot leaked")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
