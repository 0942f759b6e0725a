"""Two runs of an evaluation, question by question: `python -m sglang.test.compare_runs A.jsonl B.jsonl`.

Reads the JSONL that gsm8k_eval and few_shot_gsm8k write. Two scores with wide intervals can still be told apart when
both runs answered the same questions: only the questions that one run got right and the other wrong count (McNemar's
test). Exit code 0, 1 when a `--fail-if-...` holds, 2 when the runs can't be compared.
"""

import argparse
import os
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sglang.test.eval_data import Answer, load_answers
from sglang.test.eval_stats import Score, mcnemar_p

QUESTION_CHARS = 60  # of a question, in the list of changed answers
Key = tuple[str, int]  # question's hash, how many times this run had asked it before


@dataclass(frozen=True)
class Pair:
    """The answers of both runs to one question."""

    a: Answer
    b: Answer

    @property
    def answer_changed(self) -> bool:
        return self.a.prediction != self.b.prediction

    @property
    def text_changed(self) -> bool:
        return self.a.text != self.b.text

    @property
    def first_difference(self) -> int:
        """The position, from 0, of the first character that differs."""
        return len(os.path.commonprefix([self.a.text, self.b.text]))


@dataclass(frozen=True)
class Comparison:
    pairs: list[Pair]

    def count(self, a_correct: bool, b_correct: bool) -> int:
        return sum((p.a.correct, p.b.correct) == (a_correct, b_correct) for p in self.pairs)

    @property
    def score_a(self) -> Score:
        return Score(sum(p.a.correct for p in self.pairs), len(self.pairs))

    @property
    def score_b(self) -> Score:
        return Score(sum(p.b.correct for p in self.pairs), len(self.pairs))

    @property
    def p(self) -> float:
        return mcnemar_p(self.count(True, False), self.count(False, True))

    @property
    def changed(self) -> list[Pair]:
        """The questions whose answer changed, right or wrong."""
        return [p for p in self.pairs if p.answer_changed]

    @property
    def reworded(self) -> list[Pair]:
        """The questions with the same answer in another text."""
        return [p for p in self.pairs if p.text_changed and not p.answer_changed]


def compare(a: list[Answer], b: list[Answer]) -> Comparison:
    """Pairs the answers by question. Raises ValueError unless both runs asked the same questions equally often."""
    in_a, in_b = _keyed(a), _keyed(b)
    if in_a.keys() != in_b.keys():
        both = len(in_a.keys() & in_b.keys())
        raise ValueError(
            f"the runs asked different questions: {both} are in both, {len(in_a) - both} only in the first, "
            f"{len(in_b) - both} only in the second"
        )
    pairs = [Pair(answer, in_b[key]) for key, answer in in_a.items()]
    if wrong := [p.a.index for p in pairs if p.a.gold != p.b.gold]:
        raise ValueError(f"the runs have different right answers for question {wrong[0]} and {len(wrong) - 1} more")
    return Comparison(pairs)


def _keyed(answers: list[Answer]) -> dict[Key, Answer]:
    asked: Counter[str] = Counter()
    keyed = {}
    for answer in answers:
        keyed[answer.hash, asked[answer.hash]] = answer
        asked[answer.hash] += 1
    return keyed


def report(comparison: Comparison, name_a: str, name_b: str) -> str:
    count = comparison.count
    lines = [
        f"A {name_a}: {comparison.score_a}",
        f"B {name_b}: {comparison.score_b}",
        "",
        "| | B right | B wrong |",
        "|---|---|---|",
        f"| A right | {count(True, True)} | {count(True, False)} |",
        f"| A wrong | {count(False, True)} | {count(False, False)} |",
        "",
        f"McNemar's exact test: p = {comparison.p:.3g}",
        f"Answer changed: {len(comparison.changed)} of {len(comparison.pairs)} questions",
    ]
    if comparison.changed:
        lines += ["", "| index | hash | gold | A | B | differs from character | question |", "|" + "---|" * 7]
        lines += [_row(pair) for pair in comparison.changed] + [""]
    lines.append(f"Text changed, answer the same: {len(comparison.reworded)} questions")
    if comparison.reworded:
        places = [p.first_difference for p in comparison.reworded]
        lines[-1] += f"; first differing character: earliest {min(places)}, median {statistics.median(places):g}"
    return "\n".join(lines)


def _row(pair: Pair) -> str:
    a, b = (f"{_number(x.prediction)} {'right' if x.correct else 'wrong'}" for x in (pair.a, pair.b))
    question = " ".join(pair.a.question.split())[:QUESTION_CHARS].replace("|", "\\|")
    gold = _number(pair.a.gold)
    return f"| {pair.a.index} | {pair.a.hash} | {gold} | {a} | {b} | {pair.first_difference} | {question} |"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.15g}"


def probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")
    return value


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sglang.test.compare_runs", description="Two runs of an evaluation, question by question."
    )
    parser.add_argument("a", type=Path, help="JSONL of the first run")
    parser.add_argument("b", type=Path, help="JSONL of the second run")
    parser.add_argument("--fail-if-changed", action="store_true", help="exit code 1 when any answer changed")
    parser.add_argument("--fail-if-text-changed", action="store_true", help="exit code 1 when any reply's text changed")
    parser.add_argument(
        "--fail-if-worse", type=probability, metavar="P", help="exit code 1 when B scores lower with a p of P or less"
    )
    args = parser.parse_args(argv)
    try:
        comparison = compare(load_answers(args.a), load_answers(args.b))
    except (ValueError, OSError) as e:
        parser.exit(2, f"error: {e}\n")
    print(report(comparison, str(args.a), str(args.b)))
    worse = comparison.score_b.hits < comparison.score_a.hits
    failed = [
        args.fail_if_changed and comparison.changed,
        args.fail_if_text_changed and any(p.text_changed for p in comparison.pairs),
        args.fail_if_worse and worse and comparison.p <= args.fail_if_worse,
    ]
    sys.exit(1 if any(failed) else 0)


if __name__ == "__main__":
    main()
