"""Do a model's tokens and log-probabilities stay the same when part of the prompt comes from the prefix cache?"""

import numpy as np

from sglang.benchmark.static_batch import StaticBatch
from sglang.benchmark.static_bench import Bench
from sglang.srt.model_executor.step_io import TokenLogprob
from sglang.srt.server_args import model_folder
from sglang.srt.utils.tokenizer import Tokenizer

TEXTS = (
    "Question: Mia has 24 stickers and buys 10 more. How many stickers does she have?\nAnswer:",
    "The longest river of the continent flows from the mountains in the south to",
    "It had rained all night, and in the morning the children went out to look for",
)
RANDOM_LENGTH = 16  # tokens of a prompt where there is no tokenizer
SHOWN = 5  # most likely tokens that are printed
TOP = 128  # ... that are known: with random weights many are as likely as the best
# Largest accepted difference of the best token's log-probability: sums come in another order and are rounded to the
# model's type layer by layer. In float32 the shipped model differs by 2e-5, in bfloat16 by 0.3.
TOLERANCE = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}

Answer = list[TokenLogprob]  # of one prompt, by output position; the best token comes first in `top`


class PrefixCheck:
    """Raises ValueError when the prompts, `cut_len` or `output_len` (both in tokens) can't be used with the model."""

    def __init__(self, bench: Bench, cut_len: int, output_len: int):
        if bench.args.disable_radix_cache:
            raise ValueError("--correctness-test needs the prefix cache that --disable-radix-cache turns off")
        if bench.args.speculation:
            raise ValueError("--correctness-test compares tokens one by one; leave --speculative-algorithm out")
        self._bench = bench
        self._cut_len = cut_len
        self._output_len = output_len
        self._tolerance = TOLERANCE[bench.args.dtype]
        self._tokenizer, self._prompts = self._make_prompts()
        shortest, longest = min(map(len, self._prompts)), max(map(len, self._prompts))
        if not 1 <= cut_len < shortest:
            raise ValueError(f"--cut-len {cut_len} must be below {shortest}, the length of the shortest prompt")
        if longest + output_len > bench.max_len:
            raise ValueError(f"--output-len {output_len} and a prompt of {longest} tokens are above {bench.max_len}")

    def _make_prompts(self) -> tuple[Tokenizer | None, list[list[int]]]:
        args = self._bench.args
        if args.skip_tokenizer_init or args.load_format == "dummy":
            rng = np.random.default_rng(args.random_seed)
            return None, rng.integers(0, self._bench.config.vocab_size, (len(TEXTS), RANDOM_LENGTH)).tolist()
        tokenizer = Tokenizer(args.tokenizer_path or model_folder(args))
        return tokenizer, [tokenizer.encode(text) for text in TEXTS]

    def run(self) -> bool:
        """Compute all prompts both ways and print what came out; whether they agree."""
        kv = self._bench.kv
        kv.flush()
        whole = self._answers(reused=0)
        kv.flush()
        with StaticBatch(
            kv, [ids[: self._cut_len] for ids in self._prompts], self._bench.args.chunked_prefill_size
        ) as b:
            for step in b.prefill_steps():
                self._bench.worker.submit(step).result()
        reused = self._answers(reused=self._cut_len)
        problems = []
        for i, (first, second) in enumerate(zip(whole, reused, strict=True)):
            largest, problem = compare(first, second, self._tolerance)
            self._print(i, first, second, largest)
            if problem:
                problems.append(f"prompt {i}: {problem}")
        print("\n".join(problems) or f"Correct: no token's log-probability differs by more than {self._tolerance}.")
        return not problems

    def _answers(self, reused: int) -> list[Answer]:
        bench = self._bench
        with StaticBatch(
            bench.kv, self._prompts, bench.args.chunked_prefill_size, top_logprobs=min(TOP, bench.config.vocab_size)
        ) as batch:
            outputs = [bench.worker.submit(step).result() for step in batch.prefill_steps()]
            first = [logprob for output in outputs for (logprob,) in output.output_logprobs or []]
            later = [bench.worker.submit(batch.decode_step()).result() for _ in range(self._output_len - 1)]
            columns = [first] + [[logprob for (logprob,) in output.output_logprobs] for output in later]
            taken = [req.report.cached_tokens for req in batch.reqs]
        bench.kv.check_idle()
        assert taken == [reused] * len(taken), f"{reused} prompt tokens were to come from the cache, {taken} did"
        return [list(answer) for answer in zip(*columns, strict=True)]

    def _print(self, index: int, whole: Answer, reused: Answer, largest: float) -> None:
        print(f"\nPrompt {index}: {self._prompts[index]}")
        for title, answer in (("whole", whole), (f"after {self._cut_len} reused tokens", reused)):
            ids = [token for token, _ in map(best, answer)]
            print(f"  {title}: {ids}" + (f" {self._tokenizer.decode(ids)!r}" if self._tokenizer else ""))
            print("    first token's log-probabilities: " + ", ".join(f"{i} {p:.4f}" for p, i in answer[0].top[:SHOWN]))
        print(f"  largest difference: {largest:.6f}")


def best(logprob: TokenLogprob) -> tuple[int, float]:
    """The most likely token and its log-probability."""
    value, token = logprob.top[0]
    return token, value


def compare(whole: Answer, reused: Answer, tolerance: float) -> tuple[float, str]:
    """The largest difference of a best token's log-probability and what is wrong, "" if nothing.

    Tokens may differ where both were as likely within `tolerance`; what follows is another text, not compared.
    """
    largest = 0.0
    for position, (a, b) in enumerate(zip(whole, reused, strict=True)):
        (token_a, value_a), (token_b, value_b) = best(a), best(b)
        if token_a != token_b:
            gap = value_a - {token: value for value, token in a.top}.get(token_b, -np.inf)
            return largest, "" if gap <= tolerance else f"output token {position} is {token_a} and then {token_b}"
        largest = max(largest, abs(value_a - value_b))
        if largest > tolerance:
            return largest, f"output token {position}: its log-probability differs by {largest:.4f}, over {tolerance}"
    return largest, ""
