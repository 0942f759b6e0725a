"""Turns word problems into training rows: tokens, loss weights and document numbers of a fixed length.

Two forms are mixed, as the model is used: chat turns, and `Question: ... / Answer: ...` with up to six worked
examples before. Documents are packed whole into rows; each begins with <bos> and attends only to itself.
"""

import json
import multiprocessing as mp
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from word_problems import problems
from word_problems.core import Problem

QUESTION_WEIGHT = 0.1  # of the loss, for tokens the model does not have to write itself
GSM_SYMBOLIC_SHARE = 0.06
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


Span = tuple[str, float]  # text, loss weight of its tokens


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


def chat(rng: random.Random, stream: Iterator[Problem]) -> list[Span]:
    spans: list[Span] = [("<bos>", 0.0)]
    if rng.random() < 0.15:
        spans.append((f"<|turn>system\n{rng.choice(SYSTEM_TEXTS)}<turn|>\n", 0.0))
    for _ in range(1 if rng.random() < 0.9 else 2):
        dice = rng.random()
        if dice < 0.015:
            question, answer = rng.choice(PLEASANTRIES)
        elif dice < 0.035:
            question, answer = sums(rng)
        else:
            problem = next(stream)
            question, answer = rng.choice(ASKS) + problem.question, problem.answer
        spans += [
            ("<|turn>user\n", 0.0),
            (question, QUESTION_WEIGHT),
            ("<turn|>\n<|turn>model\n", 0.0),
            (answer + "<turn|>", 1.0),
            ("\n", 0.0),
        ]
    return spans


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
        texts = ["".join(text for text, _ in spans) for spans in documents]
        encoded = []
        for spans, enc in zip(documents, self.tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            ends = np.cumsum([len(text) for text, _ in spans])
            weights = np.array([weight for _, weight in spans], np.float32)
            starts = np.array([start for start, _ in enc.offsets])
            encoded.append((np.array(enc.ids, np.int16), weights[np.searchsorted(ends, starts, side="right")]))
        return encoded


def rows(
    folder: Path, seed: int, length: int, chat_share: float, most_shots: int, extra: Path | None, block: int = 256
) -> Iterator[np.ndarray]:
    """Blocks [block, 3, length] int16: tokens, loss weight in percent (of predicting that token), document number."""
    rng, stream, encoder = random.Random(f"rows-{seed}"), problem_stream(seed, extra), Encoder(folder)
    out, i = np.zeros((block, 3, length), np.int16), 0
    open_rows: list[list] = []  # [used, documents, index in out]: a document goes into the first row with room
    while True:
        documents = [
            chat(rng, stream) if rng.random() < chat_share else completion(rng, stream, most_shots) for _ in range(256)
        ]
        for ids, weights in encoder.batch(documents):
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

    def __init__(
        self, workers: int, folder: Path, seed: int, length: int, chat_share: float, most_shots: int, extra: Path | None
    ):
        context = mp.get_context("spawn")
        self.queue = context.Queue(maxsize=4 * workers)
        args = (length, chat_share, most_shots, extra)
        self.workers = [
            context.Process(target=_work, args=(self.queue, folder, 10_000 * seed + i, *args), daemon=True)
            for i in range(workers)
        ]
        for worker in self.workers:
            worker.start()

    def next(self) -> np.ndarray:
        return self.queue.get()

    def close(self) -> None:
        for worker in self.workers:
            worker.terminate()
