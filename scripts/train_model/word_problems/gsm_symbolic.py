"""Problems from reasoning-gym's `gsm_symbolic` (templates of real GSM8K problems), where its solutions suit a small model.

reasoning-gym (Apache-2.0) is a development dependency: it is imported only here, when asked for.
"""

import re
import zlib
from collections.abc import Iterator

from word_problems.core import TEST_SHARE, Problem

SUFFIX = " Give the result as your final answer. Do not include units."
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
LARGEST, LONGEST = 1000, 420  # numbers in the question or chain; characters of the chain


def gsm_symbolic(size: int, seed: int, test: bool = False) -> Iterator[Problem]:
    """The suitable ones among `size` drawn problems. A sixteenth, by its numbers, is kept for tests."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise SystemExit("gsm_symbolic needs reasoning-gym: pip install reasoning-gym") from error
    for item in reasoning_gym.create_dataset("gsm_symbolic", size=size, seed=seed):
        question, chain = item["question"].removesuffix(SUFFIX), item["metadata"]["answer_cot"].strip()
        numbers = NUMBER.findall(question + " " + chain)
        if any("." in n or int(n.replace(",", "")) > LARGEST for n in numbers) or len(chain) > LONGEST:
            continue
        if not re.search(r"\n#### \d+$", chain):
            continue
        key = ",".join(sorted(NUMBER.findall(question)))
        if (zlib.crc32(key.encode()) % TEST_SHARE == 0) == test:
            yield Problem("gsm_symbolic", question, chain)
