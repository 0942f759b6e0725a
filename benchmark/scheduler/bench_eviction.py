"""What the prefix cache saves on recorded patterns of use, with a model that costs nothing:
python benchmark/scheduler/bench_eviction.py [--by-age]

Requests come one after the other. The arena has 26B-A4B's proportions at an eighth of its size: a window of 128 tokens,
pages of 80 full or 8 sliding tokens. Prints for each pattern and size of memory the share of prompt tokens that were
cached.
"""

import argparse
import itertools
import random
from collections.abc import Callable, Iterator

from sglang.srt.mem_cache.arena import ArenaShape
from sglang.test.fake_worker import NullWorker
from sglang.test.scheduler_harness import VOCAB, Harness

WINDOW, FULL_PER_PAGE, SWA_PER_PAGE = 128, 80, 8
ANSWER = 16  # tokens


class Talk:
    """A conversation. With `thoughts` an answer comes back without its first half in the next prompt."""

    def __init__(self, rng: random.Random, start: list[int], thoughts: bool = False):
        self.rng, self.ids, self.thoughts = rng, start, thoughts

    def ask(self, count: int) -> list[int]:
        self.ids = self.ids + tokens(self.rng, count)
        return self.ids

    def answered(self, answer: list[int]) -> None:
        self.ids = self.ids + (answer[len(answer) // 2 :] if self.thoughts else answer)


def tokens(rng: random.Random, count: int) -> list[int]:
    return rng.choices(range(VOCAB - 1), k=count)


def round_robin(rng: random.Random, agents: int = 16, turns: int = 6, thoughts: bool = False) -> Iterator[Talk]:
    """Agents with long histories take turns."""
    system = tokens(rng, 200)
    talks = [Talk(rng, system + tokens(rng, 2300), thoughts) for _ in range(agents)]
    for _, talk in itertools.product(range(turns), talks):
        talk.ask(40)
        yield talk


def shared_prompts(rng: random.Random, prompts: int = 6, count: int = 400) -> Iterator[Talk]:
    """Some system prompts, each asked with tails that never come again."""
    systems = [tokens(rng, 500 + 100 * i) for i in range(prompts)]
    weights = [1 / (1 + i) for i in range(prompts)]
    for _ in range(count):
        talk = Talk(rng, rng.choices(systems, weights)[0])
        talk.ask(rng.randint(20, 900))
        yield talk


def mix(rng: random.Random, count: int = 500) -> Iterator[Talk]:
    """Conversations that go on for a while and end, prompts that never come again, prompts asked twice; some talks drop
    their thoughts."""
    systems = [tokens(rng, 400) for _ in range(4)]
    talks: list[Talk] = []
    asked: list[list[int]] = []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.15:
            talk = Talk(rng, tokens(rng, rng.randint(100, 2000)))
        elif kind < 0.22 and asked:
            talk = Talk(rng, rng.choice(asked[-40:]))
        elif kind < 0.40 or not talks:
            talk = Talk(rng, rng.choice(systems) + tokens(rng, rng.randint(50, 2500)), rng.random() < 0.5)
            talks = [*talks[-24:], talk]
        else:
            talk = rng.choice(talks)
        asked.append(talk.ask(rng.randint(20, 120)))
        yield talk


PATTERNS = {
    "round robin": (round_robin, (800, 900, 1100)),
    "the same, thoughts dropped": (lambda rng: round_robin(rng, thoughts=True), (800, 900, 1100)),
    "shared prompts, unique tails": (shared_prompts, (150, 400, 800)),
    "random mix": (mix, (300, 600, 900)),
}


def replay(pattern: Callable[[random.Random], Iterator[Talk]], pages: int, by_age: bool = False) -> float:
    """Share of prompt tokens that were cached."""
    h = Harness(
        shape=ArenaShape(pages, FULL_PER_PAGE, SWA_PER_PAGE, (pages - 50) * FULL_PER_PAGE, pages * SWA_PER_PAGE, 8),
        window=WINDOW,
        rows=4,
        max_len=4096,
        chunk=1024,
        worker=NullWorker(),
    )
    if by_age:
        h.kv.cache._worth = lambda end: 0.0
    asked = saved = 0
    for number, talk in enumerate(pattern(random.Random(0))):
        name, prompt = str(number), talk.ids
        h.add(name, prompt, ANSWER)
        while h.inbox or not h.scheduler.is_idle:
            h.step()
        got = h.received.pop(name)
        talk.answered(got.ids)
        asked += len(prompt)
        saved += got.finals[0].report.cached_tokens
    return saved / asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--by-age", action="store_true", help="evict what was used least recently, whatever it saves")
    args = parser.parse_args()
    print("pattern                      | pages | cached share")
    for name, (pattern, sizes) in PATTERNS.items():
        for pages in sizes:
            print(f"{name:28s} | {pages:5d} | {replay(pattern, pages, args.by_age):12.3f}")


if __name__ == "__main__":
    main()
