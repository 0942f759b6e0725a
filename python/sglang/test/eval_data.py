"""What goes into an evaluation and what comes out: questions in GSM8K's form, and one JSON line for each answer.

Questions come from a file, one's own or one of those in `test/data`; nothing is ever downloaded. Knows no server.
"""

import contextlib
import hashlib
import math
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

SHIPPED_COUNT = 200  # questions, when neither a file nor a flag says how many
NUMBER = re.compile(r"-?\d+\.?\d*")
DATA = Path(__file__).parent / "data"
SHIPPED = {  # what the shipped model was not trained on: numbers and names that are new, and whole templates
    "seen": DATA / "mini_gsm_seen.jsonl",
    "held-out": DATA / "mini_gsm_heldout.jsonl",
}


class Question(msgspec.Struct, frozen=True):
    question: str
    answer: str  # the worked chain, then "#### N"

    @property
    def gold(self) -> float:
        """N. Raises ValueError when the answer has none."""
        _, mark, end = self.answer.rpartition("####")
        value = last_number(end) if mark else None
        if value is None:
            raise ValueError("the answer does not end in `#### N`")
        return value

    @property
    def hash(self) -> str:
        """Names the question in every run, whatever its place in the file."""
        return hashlib.sha256(self.question.encode()).hexdigest()[:16]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a run's JSONL: what was asked, what came back and what it is worth."""

    index: int  # of the question in its run
    hash: str
    question: str
    gold: float
    prediction: float | None  # None: the reply holds no number
    correct: bool
    invalid: bool
    text: str
    completion_tokens: int
    finish_reason: str


def last_number(text: str) -> float | None:
    """The last number of a text, commas removed; None when it holds none that a float can hold."""
    found = NUMBER.findall(text.replace(",", ""))
    value = float(found[-1]) if found else math.nan
    return value if math.isfinite(value) else None


def grade(index: int, question: Question, text: str, completion_tokens: int, finish_reason: str) -> Answer:
    prediction = last_number(text)
    return Answer(
        index=index,
        hash=question.hash,
        question=question.question,
        gold=question.gold,
        prediction=prediction,
        correct=prediction == question.gold,
        invalid=prediction is None,
        text=text,
        completion_tokens=completion_tokens,
        finish_reason=finish_reason,
    )


def load(path: str | Path) -> list[Question]:
    """Questions of a file of lines {"question": ..., "answer": "... #### N"}, the form in which GSM8K is published.
    Raises ValueError naming the first line that is not one."""
    questions = []
    for number, question in _lines(path, Question, "a question"):
        try:
            question.gold  # noqa: B018  (for its error)
        except ValueError as e:
            raise ValueError(f"{path}, line {number}: {e}") from None
        questions.append(question)
    return questions


def load_answers(path: str | Path) -> list[Answer]:
    """A run's answers, in the order of their questions. Raises ValueError naming a line that is not one, or no line."""
    answers = [answer for _, answer in _lines(path, Answer, "an answer that an evaluation wrote")]
    if not answers:
        raise ValueError(f"{path} holds no answers")
    return sorted(answers, key=lambda answer: answer.index)


def _lines(path: str | Path, kind: type, what: str) -> Iterator[tuple[int, Any]]:
    with open(path, "rb") as lines:  # bytes end a line at \n only
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield number, msgspec.json.decode(line, type=kind)
                except ValueError as e:  # msgspec's errors, and UTF-8's
                    raise ValueError(f"{path}, line {number}: not {what}: {e}") from None


@contextlib.contextmanager
def open_answers(output_file: str | Path | None) -> Iterator[list[BinaryIO]]:
    """Where a run writes its answers: `output_file`, which must be new so that no older run is lost, and the file that
    SGLANG_EVAL_OUTPUT names, which all evaluations of one command share. Either may be missing. Raises ValueError."""
    with contextlib.ExitStack() as stack:
        files = []
        if output_file is not None:
            try:
                files.append(stack.enter_context(open(output_file, "xb")))
            except FileExistsError:
                raise ValueError(f"{output_file} exists already; give another name or remove it") from None
        if shared := os.environ.get("SGLANG_EVAL_OUTPUT"):
            files.append(stack.enter_context(open(shared, "ab")))
        yield files


def write_answer(files: list[BinaryIO], answer: Answer) -> None:
    """Written at once: whatever ends the run later, this answer is kept."""
    for file in files:
        file.write(msgspec.json.encode(answer) + b"\n")
        file.flush()


@dataclass(frozen=True)
class QuestionSet:
    shots: list[Question]  # worked examples, never asked
    questions: list[Question]
    source: str  # for people


def question_set(
    data_path: str | Path | None, split: str | None, seed: int | None, num_shots: int, count: int | None
) -> QuestionSet:
    """The first `num_shots` questions of a file as worked examples and the next `count` to ask (None: all; fewer if
    there are no more). Without a file they are the shipped ones of `split` (None: seen), 200 if nothing says how many,
    in their file's order or in one that `seed` gives. Raises ValueError for a contradiction or when no question is
    left, OSError when the file can't be read."""
    if num_shots < 0 or (count is not None and count < 1):
        raise ValueError(f"{num_shots} worked examples and {count} questions can't be")
    if data_path is not None:
        if split is not None or seed is not None:
            raise ValueError("a split and a seed choose shipped problems: leave them out, or the data path")
        rows, source = load(data_path), str(data_path)
    else:
        path = SHIPPED[split or "seen"]
        rows, source = load(path), path.name + ("" if seed is None else f", seed {seed}")
        count = SHIPPED_COUNT if count is None else count
        if seed is not None:
            random.Random(seed).shuffle(rows)
    if len(rows) <= num_shots:
        raise ValueError(f"{source}: of {len(rows)} questions none is left after {num_shots} worked examples")
    return QuestionSet(rows[:num_shots], rows[num_shots:][:count], source)


def few_shot_prompt(shots: list[Question], question: Question) -> str:
    examples = "".join(f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in shots)
    return f"{examples}Question: {question.question}\nAnswer:"
