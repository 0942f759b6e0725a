"""Many long contexts at once: does one card hold them, and how long do they take?

    python benchmark/gemma4/long_context.py --url http://127.0.0.1:30000 --requests 30 --input-len 110000

Sends all requests at once to a server's /generate (random ids, `--output-len` tokens each) and prints when the first
and the last got their first token and their last, how many were retracted or failed, and what KV memory held meanwhile
(/server_info). A key is taken from OPENAI_API_KEY. Exit code 1 when a request failed or was retracted.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass

import httpx
from agents import headers

from sglang.srt.utils.flag_types import at_least

VOCAB = 262_144


@dataclass
class Answer:
    """Seconds from the start to the first and to the last token, how often it was retracted, and how it ended."""

    first: float
    last: float
    retractions: int
    finish: str


async def ask(client: httpx.AsyncClient, ids: list[int], output_len: int, start: float) -> Answer:
    params = {"max_new_tokens": output_len, "temperature": 0, "ignore_eos": True}
    first, event = 0.0, {}
    async with client.stream(
        "POST", "/generate", json={"input_ids": ids, "sampling_params": params, "stream": True}
    ) as reply:
        if reply.status_code != 200:
            return Answer(0, 0, 0, f"HTTP {reply.status_code}: {(await reply.aread())[:200]!r}")
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - start
                event = json.loads(line[6:])
    meta = event.get("meta_info", {"finish_reason": {"type": str(event)}})
    return Answer(first, time.perf_counter() - start, meta.get("num_retractions", 0), meta["finish_reason"]["type"])


async def watch(client: httpx.AsyncClient, seen: list[dict]) -> None:
    """The scheduler's counts twice a second, until it is cancelled."""
    while True:
        info = (await client.get("/server_info")).json()
        seen.append(info["internal_states"][0])
        await asyncio.sleep(0.5)


async def run(args: argparse.Namespace) -> int:
    rng = random.Random(args.seed)
    ids = range(args.vocab // 4, 3 * args.vocab // 4)  # ordinary tokens, wherever a tokenizer has its special ones
    prompts = [rng.choices(ids, k=args.input_len) for _ in range(args.requests)]
    limits = httpx.Limits(max_connections=args.requests + 1)
    async with httpx.AsyncClient(base_url=args.url, timeout=None, limits=limits, headers=headers()) as client:
        seen: list[dict] = []
        watcher = asyncio.create_task(watch(client, seen))
        start = time.perf_counter()
        answers = await asyncio.gather(*(ask(client, ids, args.output_len, start) for ids in prompts))
        watcher.cancel()
    failed = [a.finish for a in answers if a.finish != "length"]
    retractions = sum(a.retractions for a in answers)
    firsts, lasts = sorted(a.first for a in answers), sorted(a.last for a in answers)
    most = max(seen, key=lambda state: state["full_used"], default={})
    print(
        f"{args.requests} requests of {args.input_len} tokens: first tokens after {firsts[0]:.1f} to "
        f"{firsts[-1]:.1f} s, all done after {lasts[-1]:.1f} s; {len(failed)} failed, {retractions} retractions"
    )
    if most:
        print(
            f"at most at once: {max(s['num_running_reqs'] for s in seen)} running, {most['full_used']} full tokens of "
            f"{most['full_capacity']}, {most['swa_used']} sliding of {most['swa_capacity']}, "
            f"{most['token_usage']:.2f} of the memory"
        )
    for finish in failed[:3]:
        print(f"failed: {finish}", file=sys.stderr)
    return 1 if failed or retractions else 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="(http://127.0.0.1:30000)")
    parser.add_argument("--requests", type=at_least(1), default=30, metavar="N", help="(30)")
    parser.add_argument("--input-len", type=at_least(1), default=110_000, metavar="N", help="tokens (110000)")
    parser.add_argument("--output-len", type=at_least(1), default=32, metavar="N", help="tokens (32)")
    parser.add_argument("--vocab", type=at_least(4), default=VOCAB, metavar="N", help=f"({VOCAB})")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    return parser


def main(argv: list[str]) -> int:
    try:
        return asyncio.run(run(make_parser().parse_args(argv)))
    except (httpx.HTTPError, KeyError, ValueError) as e:
        print(f"error: {type(e).__name__}: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
