"""Writes word problems as JSON lines in GSM8K's form: {"question": ..., "answer": "... #### N"}.

python scripts/train_model/make_word_problems.py --split seen --count 500 --seed 1 --out mini_gsm_seen.jsonl
"""

import argparse
import json
import sys
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

from word_problems import problems, test_held_out, test_seen
from word_problems.core import Problem


def unique(stream, count: int) -> list[Problem]:
    found: dict[str, Problem] = {}
    for problem in stream:
        found.setdefault(problem.question, problem)
        if len(found) == count:
            break
    return list(found.values())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=["train", "seen", "held-out", "gsm-symbolic"], default="train",
                        help="seen and held-out are the two test sets; gsm-symbolic needs reasoning-gym")  # fmt: skip
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--template", action="store_true", help="also write each problem's template name")
    parser.add_argument("--out", type=Path, help="a file; without it, standard output")
    args = parser.parse_args(argv)
    if args.count < 1:
        parser.error(f"--count must be at least 1, not {args.count}")
    if args.split == "gsm-symbolic":
        from word_problems.gsm_symbolic import gsm_symbolic

        chosen = list(islice(gsm_symbolic(20 * args.count, args.seed, test=True), args.count))
    else:
        stream = {"train": problems, "seen": test_seen, "held-out": test_held_out}[args.split](args.seed)
        chosen = unique(stream, args.count)
    with args.out.open("w", encoding="utf-8") if args.out else nullcontext(sys.stdout) as out:
        for p in chosen:
            row = {"question": p.question, "answer": p.answer} | ({"template": p.template} if args.template else {})
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
