"""Draws the loss of a run: plot.py --log run/log.jsonl --out docs/img/mini_training_loss.png"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.log.read_text().splitlines()]
    millions = [row["tokens"] / 1e6 for row in rows]
    figure, (loss, rate) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, height_ratios=[3, 1])
    loss.semilogy(millions, [row["answer_loss"] for row in rows], label="answer tokens")
    loss.semilogy(millions, [row["loss"] for row in rows], label="weighted, questions too", alpha=0.6)
    loss.set_ylabel("loss (nats a token)")
    loss.legend()
    loss.grid(alpha=0.3)
    rate.plot(millions, [row["rate"] for row in rows], color="gray")
    rate.set_ylabel("learning rate,\npart of its peak")
    rate.set_xlabel("million tokens")
    figure.tight_layout()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=90)


if __name__ == "__main__":
    main()
