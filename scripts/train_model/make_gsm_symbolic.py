"""Writes reasoning-gym's suitable gsm_symbolic problems as JSON lines for `train.py --gsm-symbolic`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from word_problems.gsm_symbolic import gsm_symbolic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=60_000, help="problems drawn, about half of which are suitable")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with args.out.open("w") as file:
        for problem in gsm_symbolic(args.size, args.seed):
            file.write(json.dumps(asdict(problem)) + "\n")


if __name__ == "__main__":
    main()
