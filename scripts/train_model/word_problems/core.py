"""What a word problem is, how its numbers and names are drawn, and how each sum is written out.

A template is a function of a `Sampler` that returns a `Problem`. Templates register themselves with `@template`;
those marked `held_out` never reach the training data. This file knows no template.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from word_problems.words import BOYS, GIRLS, TEST_BOYS, TEST_GIRLS, THINGS, invented_name, invented_things

TEST_SHARE = 16  # one in so many combinations of template and numbers is kept for the test sets
INVENTED_NAMES, INVENTED_THINGS = 0.5, 0.1  # shares in training, so that the model learns to copy unknown words
MAX_NUMBER = 999  # any larger intermediate result makes the sampler draw again


@dataclass(frozen=True)
class Problem:
    template: str
    question: str
    answer: str  # the worked chain, one step a line, then "#### N"

    @property
    def final(self) -> int:
        return int(self.answer.rsplit("#### ", 1)[1])

    @property
    def is_test(self) -> bool:
        """True when these numbers in this template are kept out of training, whatever the names and the wording."""
        digits = "".join(c if c.isdigit() else " " for c in self.question)
        key = self.template + ":" + ",".join(sorted(digits.split()))
        return zlib.crc32(key.encode()) % TEST_SHARE == 0


class Redraw(Exception):
    """The drawn numbers do not make a good problem; draw new ones."""


@dataclass(frozen=True)
class Person:
    name: str
    he: str
    his: str
    him: str

    def __str__(self) -> str:
        return self.name

    @property
    def He(self) -> str:
        return self.he.capitalize()

    @property
    def His(self) -> str:
        return self.his.capitalize()


class Sampler:
    """Draws everything a template needs from one seeded generator. `test_names` uses names that training never sees."""

    def __init__(self, rng: random.Random, test_names: bool = False):
        self.rng, self.test_names, self.used_names, self.template = rng, test_names, set(), ""

    def int(self, low: int, high: int) -> int:
        return self.rng.randint(low, high)

    def tens(self, low: int, high: int) -> int:
        return 10 * self.rng.randint(low // 10, high // 10)

    def pick(self, options):
        if options is THINGS and not self.test_names and self.rng.random() < INVENTED_THINGS:
            return invented_things(self.rng)
        return options[int(self.rng.random() * len(options))]

    def any(self, *phrasings: str) -> str:
        return self.pick(phrasings)

    def two(self, options) -> list:
        return self.rng.sample(options, 2)

    def three(self, options) -> list:
        return self.rng.sample(options, 3)

    def person(self) -> Person:
        girl = self.rng.random() < 0.5
        while True:
            if self.test_names:
                name = self.pick(TEST_GIRLS if girl else TEST_BOYS)
            elif self.rng.random() < INVENTED_NAMES:
                name = invented_name(self.rng)  # teaches copying of names never seen before
            else:
                name = self.pick(GIRLS if girl else BOYS)
            if name not in self.used_names:
                self.used_names.add(name)
                return Person(name, "she", "her", "her") if girl else Person(name, "he", "his", "him")

    def shuffled(self, *sentences: str) -> str:
        """Sentences whose order does not matter, in a drawn order."""
        return " ".join(self.rng.sample(sentences, len(sentences)))

    def problem(self, story: str, ask: str, steps: list[str], final: int) -> Problem:
        need(0 <= final <= MAX_NUMBER)
        story = story.strip()
        return Problem(self.template, f"{story} {ask}" if story else ask, "\n".join(steps) + f"\n#### {final}")


def need(condition: bool) -> None:
    if not condition:
        raise Redraw


# ---- sums, written so that each equals sign asks for one easy thing ----


def add(*terms: int) -> str:
    """`3 + 4 = 7`; with more terms one is folded in at a time: `3 + 4 + 5 = 7 + 5 = 12`."""
    terms = [t for t in terms]
    need(sum(terms) <= MAX_NUMBER)
    chain = [" + ".join(map(str, terms))]
    while len(terms) > 1:
        terms = [terms[0] + terms[1], *terms[2:]]
        chain.append(" + ".join(map(str, terms)))
    return " = ".join(chain)


def sub(a: int, b: int) -> str:
    need(b <= a <= MAX_NUMBER)
    return f"{a} - {b} = {a - b}"


def _tens_and_ones(n: int) -> tuple[int, int]:
    unit = 100 if n > 100 else 10
    return n // unit * unit, n % unit


def mul(a: int, b: int) -> str:
    """`23 * 14 = 20 * 14 + 3 * 14 = 280 + 42 = 322`; products known by heart are written directly."""
    product = a * b
    need(product <= MAX_NUMBER)
    big, small = max(a, b), min(a, b)
    high, low = _tens_and_ones(big)
    if big <= 12 or small <= 2 or low == 0:
        return f"{a} * {b} = {product}"
    return f"{a} * {b} = {high} * {small} + {low} * {small} = {high * small} + {low * small} = {product}"


def div(a: int, b: int) -> str:
    """`96 / 4 = 80 / 4 + 16 / 4 = 20 + 4 = 24`; exact division only."""
    need(a <= MAX_NUMBER and b > 0 and a % b == 0)
    quotient = a // b
    high, low = _tens_and_ones(quotient)
    if quotient <= 12 or b == 1 or low == 0 or quotient == 100:
        return f"{a} / {b} = {quotient}"
    return f"{a} / {b} = {high * b} / {b} + {low * b} / {b} = {high} + {low} = {quotient}"


# ---- the registry ----

TEMPLATES: dict[str, Callable[[Sampler], Problem]] = {}
HELD_OUT: set[str] = set()
WEIGHTS: dict[str, int] = {}


def template(function=None, *, held_out: bool = False, weight: int = 1):
    """Registers a template under its function's name. `weight`: how often it is drawn, relative to the others."""

    def register(f):
        assert f.__name__ not in TEMPLATES, f"two templates are called {f.__name__}"
        TEMPLATES[f.__name__], WEIGHTS[f.__name__] = f, weight
        if held_out:
            HELD_OUT.add(f.__name__)
        return f

    return register(function) if function else register


def make(name: str, rng: random.Random, test_names: bool = False) -> Problem:
    """One problem of the template called `name`; draws again until the numbers are good."""
    for _ in range(1000):
        sampler = Sampler(rng, test_names)
        sampler.template = name
        try:
            return TEMPLATES[name](sampler)
        except Redraw:
            continue
    raise RuntimeError(f"template {name} found no good numbers in 1000 draws")
