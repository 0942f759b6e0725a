"""Accuracy of a running server, called as upstream's evaluation is: `run_eval(args)`, or on the command line

    python -m sglang.test.run_eval --eval-name gsm8k --num-examples 200

Flags, rules and printed names are upstream's: the worked examples stand in the prompt in each form, in a chat too, and
the answer is the last number of the reply. Nothing is downloaded: without --gsm8k-data-path the questions are the
shipped ones, and a line says so. Evaluations whose data would have to be fetched are refused by name. Unlike upstream a
request that fails ends the run: it is not the model's wrong answer.
"""

import argparse
import json
import math
from types import SimpleNamespace
from typing import Any

from sglang.srt.utils.flag_types import at_least
from sglang.srt.utils.server_address import add_server_flags, server_url
from sglang.test.eval_data import question_set
from sglang.test.gsm8k_eval import FORMS, Result, evaluate, run_command

SERVED = "gsm8k"
NOT_SERVED = (
    "mmlu", "math", "mgsm", "mgsm_en", "gpqa", "humaneval", "longbench_v2", "mmmu", "aime25", "mixed_prefix_gsm8k",
)  # fmt: skip
# of evaluations that are not served: upstream's default of each
OF_OTHERS = {
    "--dataset-path": "THUDM/LongBench-v2", "--categories": None, "--max-context-length": None,
    "--min-context-length": None, "--mixed-prefix-gsm8k-secondary-pool-size": 15, "--mixed-prefix-gsm8k-seed": 42,
    "--thinking-mode": None,
}  # fmt: skip

LEAVE = "leave it out"
WAY_OUT = {"--thinking-mode": "for Gemma 4 give --chat-template-kwargs '{\"enable_thinking\": true}'"}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sglang.test.run_eval", description="Accuracy of a running server.")
    add_server_flags(parser)
    parser.add_argument("--model", help="name to ask for; the server's own if not given")
    parser.add_argument("--eval-name", default="mmlu", help=f"{SERVED} is served (%(default)s)")
    parser.add_argument("--api", choices=FORMS, default="chat", help="(%(default)s)")
    parser.add_argument("--repeat", type=at_least(1), default=1, metavar="N", help="whole runs (%(default)s)")
    parser.add_argument("--num-examples", type=at_least(1), metavar="N", help="questions (all of a file; 200 shipped)")
    parser.add_argument("--num-threads", type=at_least(1), default=512, metavar="N", help="at a time (%(default)s)")
    parser.add_argument("--num-shots", type=at_least(0), default=5, metavar="N", help="worked examples (%(default)s)")
    parser.add_argument("--gsm8k-data-path", metavar="FILE", help="JSON lines, as GSM8K is published; never downloaded")
    parser.add_argument("--max-tokens", type=at_least(1), default=2048, metavar="N", help="of a reply (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="(%(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="(%(default)s)")
    parser.add_argument("--top-k", type=int, metavar="K")
    parser.add_argument("--min-p", type=float, metavar="P")
    parser.add_argument("--chat-template-kwargs", type=_json_object, metavar="JSON", help="of a chat")
    parser.add_argument("--reasoning-effort", metavar="NAME", help="of a chat")
    parser.add_argument("--output-file", help="a new file for one JSON line an answer")
    for flag, default in OF_OTHERS.items():
        parser.add_argument(flag, default=default, type=type(default or ""), help=argparse.SUPPRESS)
    return parser


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


_json_object.__name__ = "JSON object"  # argparse names it in its messages


def check(args: SimpleNamespace) -> None:
    """Raises ValueError for what is not served, or contradicts itself."""
    if args.eval_name != SERVED:
        known = args.eval_name in NOT_SERVED
        why = "needs data that is not here, and nothing is downloaded" if known else "is no evaluation"
        raise ValueError(f"--eval-name {args.eval_name} {why}; {SERVED} is served: --eval-name {SERVED}")
    for flag, default in OF_OTHERS.items():
        if getattr(args, flag[2:].replace("-", "_")) != default:
            raise ValueError(f"{flag} is for other evaluations or models than those served; {WAY_OUT.get(flag, LEAVE)}")
    for name in ("chat_template_kwargs", "reasoning_effort"):
        if getattr(args, name) is not None and args.api != "chat":
            raise ValueError(f"--{name.replace('_', '-')} is for --api chat")
    if args.repeat > 1 and args.output_file:
        raise ValueError("--output-file is for one run; leave --repeat out")


def sampling(args: SimpleNamespace) -> dict[str, Any]:
    """Fields of a request; those that are not given are left to the server."""
    names = "temperature", "top_p", "top_k", "min_p", "chat_template_kwargs", "reasoning_effort"
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def metrics(result: Result) -> dict[str, float]:
    """By upstream's names; `latency` in seconds, `std` of the single answers."""
    score = result.score
    low, high = score.interval
    return {
        "score": score.share,
        "mean": score.share,
        "std": math.sqrt(score.share * (1 - score.share)),
        "latency": result.seconds,
        "output_throughput": result.tokens_per_second,
        "n": score.n,
        "ci_low": low,
        "ci_high": high,
    }


def run_eval(args: SimpleNamespace | argparse.Namespace) -> dict[str, Any]:
    """Ask a running server. `args` has the flags of this module as attributes; those it lacks take their defaults, and
    attributes that are none are ignored, as upstream's tests hand over those of other tools.

    Returns metrics() of the last run; with `repeat` also scores and mean_score. Raises ValueError for arguments or data
    that can't be, EvalError when a run could not be finished.
    """
    args = SimpleNamespace(**(vars(make_parser().parse_args([])) | vars(args)))
    check(args)
    data = question_set(args.gsm8k_data_path, None, None, args.num_shots, args.num_examples)
    print(f"{len(data.questions)} questions of {data.source}")
    url = server_url(args).removesuffix("/v1")
    found = []
    for _ in range(args.repeat):
        result = evaluate(
            url, data.questions, args.api, data.shots, args.num_threads, args.max_tokens, args.output_file,
            sampling(args), args.model,
        )  # fmt: skip
        found.append(metrics(result))
        print(f"Total latency: {result.seconds:.3f} s")
        print(f"Score: {result.score}")
        print(f"Output throughput: {result.tokens_per_second:.3f} token/s")
    if args.repeat == 1:
        return found[0]
    scores = [f"{each['score']:.3f}" for each in found]
    mean = sum(each["score"] for each in found) / args.repeat
    print(f"Repeat: {args.repeat}, mean: {mean:.3f}\nScores: {scores}")
    return found[-1] | {"scores": scores, "mean_score": mean}


def main(argv: list[str] | None = None) -> None:
    run_command(make_parser(), argv, run_eval)


if __name__ == "__main__":
    main()
