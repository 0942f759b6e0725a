"""GSM8K-form accuracy of a running server: `python -m sglang.test.gsm8k_eval --data-path FILE.jsonl`.

Two forms. `chat`: each question alone as a user turn, zero-shot. `completion`: `--num-shots` worked examples in the
`Question: / Answer:` form, then the question, as the registered tests of upstream do (stop list and answer rule too).
The answer is the last number of the reply. A score is never shown without its n and 95 % interval (Wilson's).
"""

import argparse
import asyncio
import json
import math
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

STOP = ["Question", "Assistant:", "<|separator|>"]
NUMBER = re.compile(r"-?\d+\.?\d*")
REQUEST_SECONDS = 600


@dataclass
class Answer:
    question: str
    gold: float
    text: str
    value: float | None
    tokens: int

    @property
    def correct(self) -> bool:
        return self.value == self.gold


@dataclass
class Result:
    answers: list[Answer]
    seconds: float

    @property
    def score(self) -> float:
        return sum(a.correct for a in self.answers) / len(self.answers)

    @property
    def tokens_per_second(self) -> float:
        return sum(a.tokens for a in self.answers) / self.seconds

    def __str__(self) -> str:
        low, high = wilson_interval(sum(a.correct for a in self.answers), len(self.answers))
        return (
            f"score {self.score:.3f} (n = {len(self.answers)}, 95 % interval {low:.3f} to {high:.3f}), "
            f"{self.seconds:.1f} s, {self.tokens_per_second:.0f} output tokens/s"
        )


def wilson_interval(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share; E. B. Wilson 1927. Unlike the normal one it stays within [0, 1]."""
    share, z2 = hits / n, z * z
    centre = share + z2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)


def last_number(text: str) -> float | None:
    """The last number of a text, thousands separators removed; None when it holds none."""
    found = NUMBER.findall(text.replace(",", ""))
    return float(found[-1]) if found else None


def load(path: str | Path) -> list[dict]:
    """Lines {"question", "answer"}; raises ValueError naming the first line that is not."""
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            if last_number(row["answer"]) is None or not isinstance(row["question"], str):
                raise KeyError
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{path}:{number}: not a GSM8K line with a question and an answer that ends in a number"
            ) from None
        rows.append(row)
    return rows


def few_shot_prefix(rows: list[dict]) -> str:
    return "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in rows)


async def _ask(client: httpx.AsyncClient, row: dict, form: str, prefix: str, model: str, max_tokens: int) -> Answer:
    body = {"model": model, "temperature": 0, "max_tokens": max_tokens}
    if form == "chat":
        path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": row["question"]}]
    else:
        path, body["prompt"], body["stop"] = "/v1/completions", f"{prefix}Question: {row['question']}\nAnswer:", STOP
    reply = await client.post(path, json=body)
    reply.raise_for_status()
    data = reply.json()
    choice = data["choices"][0]
    text = choice["message"]["content"] if form == "chat" else choice["text"]
    return Answer(
        row["question"], last_number(row["answer"]), text, last_number(text or ""), data["usage"]["completion_tokens"]
    )


async def evaluate_async(
    base_url: str, rows: list[dict], form: str, shots: list[dict], concurrency: int, max_tokens: int
) -> Result:
    limit = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=base_url, timeout=REQUEST_SECONDS, limits=limits, trust_env=False) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        prefix = few_shot_prefix(shots)

        async def one(row: dict) -> Answer:
            async with limit:
                return await _ask(client, row, form, prefix, model, max_tokens)

        start = time.perf_counter()
        answers = await asyncio.gather(*(one(row) for row in rows))
        return Result(list(answers), time.perf_counter() - start)


def evaluate(
    base_url: str,
    rows: list[dict],
    form: str = "chat",
    shots: list[dict] | None = None,
    concurrency: int = 32,
    max_tokens: int = 512,
) -> Result:
    """Ask the server all questions of `rows`; a request that fails raises httpx.HTTPError."""
    return asyncio.run(evaluate_async(base_url, rows, form, shots or [], concurrency, max_tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description="GSM8K-form accuracy of a running server.")
    parser.add_argument("--base-url", default="http://127.0.0.1:30000")
    parser.add_argument("--data-path", required=True, help="JSONL with question and answer")
    parser.add_argument("--form", choices=("chat", "completion"), default="chat")
    parser.add_argument("--num-shots", type=int, default=5, help="worked examples before a question (completion form)")
    parser.add_argument("--num-examples", type=int, default=None)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--output", help="write one JSON line a question")
    args = parser.parse_args()
    try:
        rows = load(args.data_path)
        shots = rows[: args.num_shots] if args.form == "completion" else []
        rows = rows[len(shots) :][: args.num_examples]
        if not rows:
            raise ValueError(f"{args.data_path} has no question left to ask")
        result = evaluate(args.base_url, rows, args.form, shots, args.concurrency, args.max_tokens)
    except (ValueError, OSError, httpx.HTTPError) as e:
        sys.exit(f"error: {type(e).__name__}: {e}" if isinstance(e, httpx.HTTPError) else f"error: {e}")
    if args.output:
        lines = [json.dumps(vars(a) | {"correct": a.correct}, ensure_ascii=False) for a in result.answers]
        Path(args.output).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{args.form}, {len(shots)} shots: {result}")


if __name__ == "__main__":
    main()
