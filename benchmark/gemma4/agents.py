"""Agents that take turns: each has a long history that grows by a few tokens a turn, and the server meets all of them
in between. How long does a turn wait for its first token, and how much of its history does the prefix cache still have?

    python benchmark/gemma4/agents.py --url http://127.0.0.1:30000 --agents 20 40 [--history 20000] [--new 300]

Any server with OpenAI's /v1/completions that takes token ids will do; prompts are random ids. One request at a time, so
the time to the first token is that of the prefill that the cache does not save. Prints for each number of agents and
each turn the median and the longest time, how many turns found at least nine tenths of their history (where the server
counts cached tokens: `--enable-cache-report` here), and how many tokens came back from host memory (where it keeps
prefixes: `--enable-hierarchical-cache` here; of 26B-A4B an agent of 20,000 tokens takes 0.62 GB). A key is taken from
OPENAI_API_KEY. Exit code 1 when a request failed.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from dataclasses import dataclass

import httpx

from sglang.srt.utils.flag_types import at_least

VOCAB = 262_144
TIMEOUT = 300.0  # seconds without an answer


@dataclass
class Turn:
    """Seconds to the first token, tokens of the prompt, and those of them that were cached (None: not counted)."""

    first: float
    prompt: int
    cached: int | None

    @property
    def hit(self) -> bool:
        return self.cached is not None and self.cached >= 0.9 * self.prompt


def ask(client: httpx.Client, model: str, ids: list[int], new_tokens: int) -> Turn:
    """Raises RuntimeError with what the server said when it refuses or the answer breaks off."""
    body = {"model": model, "prompt": ids, "max_tokens": new_tokens, "temperature": 0, "stream": True}
    started, first, usage = time.perf_counter(), None, None
    with client.stream("POST", "/v1/completions", json=body | {"stream_options": {"include_usage": True}}) as reply:
        if reply.status_code != 200:
            raise RuntimeError(f"HTTP {reply.status_code}: {reply.read()[:300].decode(errors='replace')}")
        for line in reply.iter_lines():
            if not line.startswith("data: {"):
                continue
            first = first or time.perf_counter() - started
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(event["error"])
            usage = event.get("usage") or usage
    if first is None or usage is None:
        raise RuntimeError("the answer ended without a token or its usage")
    details = usage.get("prompt_tokens_details") or {}
    return Turn(first, usage["prompt_tokens"], details.get("cached_tokens"))


def brought_back(client: httpx.Client) -> int | None:
    """Tokens that have come back from the server's host memory so far; None where it has none."""
    reply = client.get("/server_info")
    if reply.status_code != 200:
        return None
    return reply.json().get("internal_states", [{}])[0].get("host_loaded_tokens_total")


def headers() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def measure(client: httpx.Client, model: str, agents: int, args: argparse.Namespace) -> None:
    rng = random.Random(agents)
    ids = range(args.vocab // 4, 3 * args.vocab // 4)  # ordinary tokens, wherever a tokenizer has its special ones
    histories = [rng.choices(ids, k=args.history) for _ in range(agents)]
    for turn in range(args.turns):
        turns, before = [], brought_back(client)
        for history in histories:
            history += rng.choices(ids, k=args.new)
            turns.append(ask(client, model, history, args.output))
        times = [1000 * t.first for t in turns]
        hits = "not counted" if turns[0].cached is None and turn else f"{sum(t.hit for t in turns):d} of {agents}"
        back = "" if before is None else f", {brought_back(client) - before} tokens from the host"
        print(
            f"{agents:4d} agents, turn {turn + 1}: first token after {statistics.median(times):7.1f} ms "
            f"(longest {max(times):7.1f}), history cached {hits}{back}",
            flush=True,
        )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="(http://127.0.0.1:30000)")
    parser.add_argument("--agents", type=at_least(1), nargs="+", default=[20, 40], metavar="N", help="(20 40)")
    parser.add_argument("--history", type=at_least(1), default=20_000, metavar="N", help="tokens at first (20000)")
    parser.add_argument("--new", type=at_least(1), default=300, metavar="N", help="tokens a turn (300)")
    parser.add_argument("--turns", type=at_least(1), default=3, metavar="N", help="(3)")
    parser.add_argument("--output", type=at_least(1), default=8, metavar="N", help="tokens of an answer (8)")
    parser.add_argument("--vocab", type=at_least(4), default=VOCAB, metavar="N", help=f"({VOCAB})")
    return parser


def main(argv: list[str]) -> int:
    args = make_parser().parse_args(argv)
    try:
        with httpx.Client(base_url=args.url, timeout=TIMEOUT, headers=headers()) as client:
            model = client.get("/v1/models").json()["data"][0]["id"]
            for agents in args.agents:
                measure(client, model, agents, args)
    except (RuntimeError, httpx.HTTPError, KeyError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
