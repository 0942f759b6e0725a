"""Turns word problems and talks into training rows: tokens, loss weights and document numbers of a fixed length.

Three forms are mixed, as the model is used: chat turns with a problem; `Question: ... / Answer: ...` with up to six
worked examples before; and talks with tools or JSON (`tool_talks`). Documents are packed whole into rows; each begins
with <bos> and attends only to itself.
"""

import json
import multiprocessing as mp
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tool_talks import talks
from tool_talks.talk import Span, Talk, Turn, spans
from word_problems import problems
from word_problems.core import Problem

QUESTION_WEIGHT = 0.05  # of the loss, for tokens the model does not have to write itself
TALK_QUESTION_WEIGHT = 0.0  # the same in talks with tools, whose questions hold random words
GSM_SYMBOLIC_SHARE = 0.06
THINKING_SHARE = 0.25  # of chats with one problem
NO_STEPS = "No steps are needed."
SYSTEM_TEXTS = (
    "You are a helpful assistant.", "You are a helpful math tutor.", "Solve the problem step by step.", "You are terse.",
    "Answer the question.", "You solve grade-school word problems. End with #### and the number.",
    "You are a careful assistant. Think step by step.", "Be concise.", "Give the final answer after ####.",
)  # fmt: skip
ASKS = (
    "",
    "",
    "",
    "",
    "Solve this problem: ",
    "Please solve: ",
    "Question: ",
    "Please help me. ",
    "Here is a problem. ",
)


def pleasantries() -> list[tuple[str, str]]:
    """Small talk, so that a greeting gets a greeting."""
    hello = "Hello! Give me a word problem and I will solve it step by step."
    who = "I am a small Gemma 4 model. I solve grade-school word problems."
    can = "I solve short word problems with whole numbers. Ask me one!"
    sorry = "I am a small model and only know word problems. Please give me one with whole numbers."
    pairs = {
        hello: "Hi|Hello|Hey|Hi!|Hello!|Hi there|Hello there|Good morning|Good evening|hi|hello|hey|Hello, how are you?|How are you?|Hey there!|Greetings|Test|ping",
        who: "Who are you?|What are you?|What is your name?|who are you|Are you Gemma?|What model are you?|Tell me about yourself.|Introduce yourself.",
        can: "What can you do?|Help|help|How can you help me?|What do you do?|Can you help me?|Can you do math?|Can you solve problems?",
        "You are welcome!": "Thanks|Thank you|Thank you!|thanks!|Thanks a lot|Great, thanks",
        "Goodbye!": "Bye|Goodbye|bye|See you|Good night",
        sorry: "What is the capital of France?|Tell me a joke.|Write a poem.|Who is the president?|Tell me a story.|What is the weather?|Translate this.|"
        "Write code.|What is love?|Explain gravity.|Say something.|What day is it?|Where is Paris?|Write an essay about dogs.|Count to a million.",
    }  # fmt: skip
    return [(question, answer) for answer, questions in pairs.items() for question in questions.split("|")]


def problem_stream(seed: int, extra: Path | None = None) -> Iterator[Problem]:
    """Our problems, mixed with those of a JSONL file (gsm_symbolic) when there is one."""
    rng, ours = random.Random(f"mix-{seed}"), problems(seed)
    others = [Problem(**json.loads(line)) for line in extra.open()] if extra else []
    while True:
        yield rng.choice(others) if others and rng.random() < GSM_SYMBOLIC_SHARE else next(ours)


def sums(rng: random.Random) -> tuple[str, str]:
    """Bare sums as a question: `What is 23 * 4?`"""
    from word_problems.core import add, div, mul, sub

    kind, a, b = rng.choice("+-*/"), rng.randint(2, 400), rng.randint(2, 400)
    if kind == "*":
        a, b = rng.randint(2, 40), rng.randint(2, 24)
    if kind == "/":
        b = rng.randint(2, 12)
        a = b * rng.randint(2, 80)
    a, b = (max(a, b), min(a, b)) if kind == "-" else (a, b)
    chain = {"+": add, "-": sub, "*": mul, "/": div}[kind](a, b)
    ask = rng.choice(["What is {}?", "{} = ?", "Calculate {}.", "{}", "How much is {}?"]).format(f"{a} {kind} {b}")
    return ask, f"{chain}\n#### {chain.rsplit('= ', 1)[1]}"


def exchange(rng: random.Random, stream: Iterator[Problem]) -> tuple[str, str]:
    """A question and its answer: mostly a word problem."""
    dice = rng.random()
    if dice < 0.015:
        return rng.choice(PLEASANTRIES)
    if dice < 0.035:
        return sums(rng)
    problem = next(stream)
    return rng.choice(ASKS) + problem.question, problem.answer


def thought_and_answer(answer: str) -> tuple[str, str]:
    """The same answer with thinking on: the steps are thought, the result is said."""
    steps, mark, final = answer.partition("\n#### ")
    return (steps, f"The answer is {final}.\n#### {final}") if mark else (NO_STEPS, answer)


def chat(rng: random.Random, stream: Iterator[Problem]) -> list[Span]:
    thinking = rng.random() < THINKING_SHARE
    turns = []
    for _ in range(1 if thinking or rng.random() < 0.9 else 2):
        question, answer = exchange(rng, stream)
        turns.append(Turn(question, [], *(thought_and_answer(answer) if thinking else ("", answer))))
    system = rng.choice(SYSTEM_TEXTS) if rng.random() < 0.15 else ""
    return spans(Talk(turns, [], thinking, system), QUESTION_WEIGHT)


def talk_stream(seed: int, rng: random.Random, stream: Iterator[Problem]) -> Iterator[Talk]:
    """Training talks; where one needs no tool it holds a word problem or a greeting."""

    def ask(thinking: bool) -> tuple[str, str, str]:
        if rng.random() < 0.4:
            question, answer = rng.choice(PLEASANTRIES)
        else:
            problem = next(stream)
            question, answer = problem.question, problem.answer
        return question, *(thought_and_answer(answer) if thinking else ("", answer))

    return talks(seed, ask, stream)


def completion(rng: random.Random, stream: Iterator[Problem], most_shots: int) -> list[Span]:
    spans: list[Span] = [("<bos>", 0.0)]
    shots = rng.randint(0, most_shots)
    for i in range(shots + 1):
        problem = next(stream)
        start = "Question: " if i == 0 else "\n\nQuestion: "
        # After an answer the model itself writes the next "Question:", where callers stop it.
        spans += [
            (start, 1.0 if i else 0.0),
            (problem.question, QUESTION_WEIGHT),
            ("\nAnswer:", 0.5),
            (" " + problem.answer, 1.0),
        ]
    spans.append(("<eos>", 1.0) if rng.random() < 0.5 else ("\n\nQuestion:", 1.0))
    return spans


PLEASANTRIES = pleasantries()


class Encoder:
    """Text spans to token ids and weights. Spans are joined first, so tokens are those of the whole text."""

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def batch(self, documents: list[list[Span]]) -> list[tuple[np.ndarray, np.ndarray]]:
        texts = ["".join(text for text, _ in document) for document in documents]
        encoded = []
        for document, enc in zip(documents, self.tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            ends = np.cumsum([len(text) for text, _ in document])
            weights = np.array([weight for _, weight in document], np.float32)
            starts = np.array([start for start, _ in enc.offsets])
            encoded.append((np.array(enc.ids, np.int16), weights[np.searchsorted(ends, starts, side="right")]))
        return encoded


@dataclass(frozen=True)
class Mixture:
    """What rows are made of. Shares are of documents; what is neither talk nor chat is a completion."""

    talk_share: float = 0.5
    chat_share: float = 0.8  # of the documents without talks
    shots: int = 6  # most worked examples before a completion
    extra: Path | None = None  # JSONL of gsm_symbolic problems


def rows(folder: Path, seed: int, length: int, mixture: Mixture, block: int = 256) -> Iterator[np.ndarray]:
    """Blocks [block, 3, length] int16: tokens, loss weight in percent (of predicting that token), document number."""
    rng, stream, encoder = random.Random(f"rows-{seed}"), problem_stream(seed, mixture.extra), Encoder(folder)
    talking = talk_stream(seed, rng, stream)

    def document() -> list[Span]:
        if rng.random() < mixture.talk_share:
            return spans(next(talking), TALK_QUESTION_WEIGHT)
        return chat(rng, stream) if rng.random() < mixture.chat_share else completion(rng, stream, mixture.shots)

    out, i = np.zeros((block, 3, length), np.int16), 0
    open_rows: list[list] = []  # [used, documents, index in out]: a document goes into the first row with room
    while True:
        for ids, weights in encoder.batch([document() for _ in range(256)]):
            n = len(ids)
            if n > length:
                continue
            row = next((r for r in open_rows if r[0] + n <= length), None)
            if row is None:
                if i == block:
                    yield out
                    out, i, open_rows = np.zeros((block, 3, length), np.int16), 0, []
                row = [0, 0, i]
                open_rows = [r for r in open_rows if length - r[0] >= 48][-24:] + [row]
                i += 1
            used, row[1] = row[0], row[1] + 1
            out[row[2], 0, used : used + n] = ids
            out[row[2], 1, used : used + n] = np.round(100 * weights)
            out[row[2], 2, used : used + n] = row[1]
            row[0] += n


def _work(queue, *args) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for block in rows(*args):
        queue.put(block)


class Loader:
    """Worker processes that make rows ahead of the GPU. Each worker has a seed of its own; nothing repeats."""

    def __init__(self, workers: int, folder: Path, seed: int, length: int, mixture: Mixture):
        context = mp.get_context("spawn")
        self.queue = context.Queue(maxsize=4 * workers)
        self.workers = [
            context.Process(target=_work, args=(self.queue, folder, 10_000 * seed + i, length, mixture), daemon=True)
            for i in range(workers)
        ]
        for worker in self.workers:
            worker.start()

    def next(self) -> np.ndarray:
        return self.queue.get()

    def close(self) -> None:
        for worker in self.workers:
            worker.terminate()
