"""GSM8K-form accuracy of a running server: `python -m sglang.test.gsm8k_eval --data-path FILE.jsonl`.

Three forms. `chat`: each question alone as a user turn, zero-shot. `completion`: `--num-shots` worked examples in the
`Question: / Answer:` form, then the question, over /v1/completions, as the registered tests of upstream do (stop list
and answer rule too). `generate`: the same prompt over /generate, as in few_shot_gsm8k.py. The answer is the last number
of the reply. A score is never shown without its n and 95 % interval.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import msgspec
from tqdm import tqdm

from sglang.srt.utils.flag_types import at_least
from sglang.srt.utils.server_address import add_server_flags, server_url
from sglang.test.eval_data import (
    SHIPPED,
    Answer,
    Question,
    few_shot_prompt,
    grade,
    open_answers,
    question_set,
    write_answer,
)
from sglang.test.eval_stats import Score

FORMS = ("chat", "completion", "generate")
STOP = ["Question", "Assistant:", "<|separator|>"]
TIMEOUT = httpx.Timeout(600, connect=10)  # seconds; an answer may wait long in the server's queue


class EvalError(RuntimeError):
    """A run that could not be finished: why, how far it came and where its answers are."""


@dataclass(frozen=True)
class Result:
    answers: list[Answer]  # in the order of the questions
    seconds: float

    @property
    def score(self) -> Score:
        return Score(sum(answer.correct for answer in self.answers), len(self.answers))

    @property
    def invalid(self) -> float:
        """The share of replies without a number; they count as wrong."""
        return sum(answer.invalid for answer in self.answers) / len(self.answers)

    @property
    def tokens_per_second(self) -> float:
        return sum(answer.completion_tokens for answer in self.answers) / self.seconds

    def __str__(self) -> str:
        return (
            f"score {self.score}, invalid {self.invalid:.3f}, {self.seconds:.1f} s, "
            f"{self.tokens_per_second:.0f} output tokens/s"
        )


# What is read of the server's replies.
class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: Annotated[list[_Model], msgspec.Meta(min_length=1)]


class _Message(msgspec.Struct):
    content: str | None


class _ChatChoice(msgspec.Struct):
    message: _Message
    finish_reason: str


class _TextChoice(msgspec.Struct):
    text: str
    finish_reason: str


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Chat(msgspec.Struct):
    choices: Annotated[list[_ChatChoice], msgspec.Meta(min_length=1)]
    usage: _Usage


class _Completion(msgspec.Struct):
    choices: Annotated[list[_TextChoice], msgspec.Meta(min_length=1)]
    usage: _Usage


class _FinishReason(msgspec.Struct):
    type: str


class _MetaInfo(msgspec.Struct):
    completion_tokens: int
    finish_reason: _FinishReason


class _Generated(msgspec.Struct):
    text: str
    meta_info: _MetaInfo


class EvalClient:
    """Asks one server in one form, one reply a question. `sampling` goes into every request beside temperature 0, or
    in its place. Every failure is an EvalError."""

    def __init__(self, http: httpx.AsyncClient, form: str, shots: list[Question], max_tokens: int, sampling: dict):
        self.http = http
        self.shots = shots
        self.max_tokens = max_tokens
        self.sampling = {"temperature": 0} | sampling
        self.model = ""
        self.ask = {"chat": self._chat, "completion": self._completion, "generate": self._generate}[form]

    async def find_model(self, name: str | None) -> None:
        """`name`, or the server's own."""
        self.model = name or (await self._request("GET", "/v1/models", _Models)).data[0].id

    async def _chat(self, index: int, question: Question) -> Answer:
        text = few_shot_prompt(self.shots, question) if self.shots else question.question
        messages = [{"role": "user", "content": text}]
        body = {"model": self.model, "messages": messages, "max_tokens": self.max_tokens, **self.sampling}
        reply = await self._request("POST", "/v1/chat/completions", _Chat, body)
        choice = reply.choices[0]
        text = choice.message.content or ""
        return self._grade(index, question, text, reply.usage.completion_tokens, choice.finish_reason)

    async def _completion(self, index: int, question: Question) -> Answer:
        prompt = few_shot_prompt(self.shots, question)
        body = {"model": self.model, "prompt": prompt, "max_tokens": self.max_tokens, "stop": STOP, **self.sampling}
        reply = await self._request("POST", "/v1/completions", _Completion, body)
        choice = reply.choices[0]
        return self._grade(index, question, choice.text, reply.usage.completion_tokens, choice.finish_reason)

    async def _generate(self, index: int, question: Question) -> Answer:
        params = {"max_new_tokens": self.max_tokens, "stop": STOP, **self.sampling}
        body = {"text": few_shot_prompt(self.shots, question), "sampling_params": params}
        reply = await self._request("POST", "/generate", _Generated, body)
        meta = reply.meta_info
        return self._grade(index, question, reply.text, meta.completion_tokens, meta.finish_reason.type)

    def _grade(self, index: int, question: Question, text: str, completion_tokens: int, finish_reason: str) -> Answer:
        if finish_reason == "abort":  # half a reply is not the model's answer
            raise EvalError("the server aborted a request")
        return grade(index, question, text, completion_tokens, finish_reason)

    async def _request(self, method: str, path: str, kind: type, body: dict | None = None) -> Any:
        try:
            reply = await self.http.request(method, path, json=body)
        except httpx.RequestError as e:
            raise EvalError(f"no answer from {path}: {type(e).__name__} {e}".rstrip()) from None
        if reply.status_code != 200:
            raise EvalError(f"{path} answered with {reply.status_code}: {reply.text[:300]}")
        try:
            return msgspec.json.decode(reply.content, type=kind)
        except ValueError as e:
            raise EvalError(f"{path} answered in another form than expected: {e}") from None


async def evaluate_async(
    base_url: str,
    questions: list[Question],
    form: str,
    shots: list[Question],
    concurrency: int,
    max_tokens: int,
    output_file: str | Path | None,
    sampling: dict,
    model: str | None,
) -> Result:
    gate = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=base_url, timeout=TIMEOUT, limits=limits, trust_env=False) as http:
        client = EvalClient(http, form, shots, max_tokens, sampling)
        await client.find_model(model)

        answers: list[Answer] = []
        with open_answers(output_file) as files, tqdm(total=len(questions), disable=None, unit="question") as bar:

            async def one(index: int, question: Question) -> None:
                async with gate:
                    answer = await client.ask(index, question)
                answers.append(answer)
                write_answer(files, answer)
                bar.update()

            start = time.perf_counter()
            tasks = [asyncio.create_task(one(i, question)) for i, question in enumerate(questions)]
            try:
                await asyncio.gather(*tasks)
            except EvalError as e:
                kept = f", kept in {' and '.join(str(file.name) for file in files)}" if answers and files else ""
                raise EvalError(f"{e} ({len(answers)} of {len(questions)} questions answered{kept})") from None
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            seconds = time.perf_counter() - start
    return Result(sorted(answers, key=lambda answer: answer.index), seconds)


def evaluate(
    base_url: str,
    questions: list[Question],
    form: str = "chat",
    shots: list[Question] | None = None,
    concurrency: int = 32,
    max_tokens: int = 512,
    output_file: str | Path | None = None,
    sampling: dict | None = None,
    model: str | None = None,
) -> Result:
    """Ask the server all questions, `concurrency` at a time, and write each answer to `output_file` (see open_answers).
    Greedy unless `sampling`, fields by the form's own names, says otherwise; in a chat worked examples stand before the
    question in the user's turn.

    A request that fails, or that the server aborts, ends the run with an EvalError that says how far it came; the
    answers before it are in the file. Raises ValueError for arguments that can't be.
    """
    if concurrency < 1 or form not in FORMS:
        raise ValueError(f"form {form}, {concurrency} at a time, can't be")
    run = evaluate_async(
        base_url, questions, form, shots or [], concurrency, max_tokens, output_file, sampling or {}, model
    )
    try:
        return asyncio.run(run)
    except (EvalError, httpx.InvalidURL) as e:
        raise EvalError(f"{base_url}: {e}") from None


def run_command(
    parser: argparse.ArgumentParser, argv: list[str] | None, run: Callable[[argparse.Namespace], object]
) -> None:
    """`run` with the command line's flags. Exit codes: 2 for arguments or data that can't be, 1 for a run that could
    not be finished, 130 for Ctrl-C."""
    args = parser.parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError) as e:
        parser.error(str(e))
    except EvalError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-path", help="JSONL with question and answer, as GSM8K is published; never downloaded")
    parser.add_argument("--split", choices=SHIPPED, help="of the shipped problems, without --data-path (seen)")
    parser.add_argument("--data-seed", type=int, help="order of the shipped problems (their file's)")
    parser.add_argument("--output-file", help="a new file for one JSON line an answer")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sglang.test.gsm8k_eval", description="GSM8K-form accuracy of a running server."
    )
    add_server_flags(parser)
    add_data_flags(parser)
    parser.add_argument("--form", choices=FORMS, default="chat")
    parser.add_argument("--num-shots", type=at_least(0), help="worked examples before a question (5; chat has none)")
    parser.add_argument("--num-examples", type=at_least(1), help="questions (all of a file; 200 shipped ones)")
    parser.add_argument("--concurrency", type=at_least(1), default=32)
    parser.add_argument("--max-tokens", type=at_least(1), default=512)
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.form == "chat" and args.num_shots:
        parser.error("--num-shots is for --form completion or generate; chat is zero-shot")
    num_shots = 0 if args.form == "chat" else 5 if args.num_shots is None else args.num_shots
    try:
        data = question_set(args.data_path, args.split, args.data_seed, num_shots, args.num_examples)
    except (ValueError, OSError) as e:
        parser.error(str(e))
    print(f"{len(data.questions)} questions of {data.source}")
    try:
        result = evaluate(
            server_url(args), data.questions, args.form, data.shots, args.concurrency, args.max_tokens, args.output_file
        )
    except (EvalError, ValueError, OSError) as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"{args.form}, {num_shots} shots: {result}")


if __name__ == "__main__":
    main()
