"""Grade-school word problems in GSM8K's form, made from seeded templates.

`problems(seed)` yields training problems without end; `test_seen` and `test_held_out` yield the two kinds of test
problems: numbers and names that training never sees, and whole templates that training never sees.
"""

import random
from collections.abc import Iterator

from word_problems import measures, money, scenes, stories, things  # noqa: F401  (they register their templates)
from word_problems.core import HELD_OUT, TEMPLATES, WEIGHTS, Problem, make

SEEN = [name for name in TEMPLATES if name not in HELD_OUT]


def problems(seed: int) -> Iterator[Problem]:
    """Training problems: seen templates, without the number combinations and names kept for the test sets."""
    rng, weights = random.Random(seed), [WEIGHTS[name] for name in SEEN]
    while True:
        for name in rng.choices(SEEN, weights, k=1000):
            problem = make(name, rng)
            if not problem.is_test:
                yield problem


def test_seen(seed: int) -> Iterator[Problem]:
    """Seen templates in turn, with reserved numbers and reserved names."""
    rng = random.Random(f"seen-{seed}")
    while True:
        for name in SEEN:
            while not (problem := make(name, rng, test_names=True)).is_test:
                pass
            yield problem


def test_held_out(seed: int) -> Iterator[Problem]:
    """Held-out templates in turn, with reserved names."""
    rng = random.Random(f"held-out-{seed}")
    while True:
        for name in sorted(HELD_OUT):
            yield make(name, rng, test_names=True)


test_seen.__test__ = test_held_out.__test__ = False  # they are no pytest functions
