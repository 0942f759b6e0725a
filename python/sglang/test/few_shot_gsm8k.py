"""Few-shot GSM8K over /generate, called as upstream's tests call it: `run_eval(args)`, or on the command line

    python -m sglang.test.few_shot_gsm8k --data-path test.jsonl --num-questions 200

Names and printed lines are upstream's; n and the 95 % interval stand beside the score. Two rules are those of its newer
evaluation: worked examples are not asked again, and numbers may be negative or decimal. Nothing is downloaded: without
a data path the questions are the shipped ones, and a line says so.
"""

import argparse
from types import SimpleNamespace

from sglang.srt.utils.flag_types import at_least
from sglang.srt.utils.server_address import add_server_flags, server_url
from sglang.test.eval_data import question_set
from sglang.test.gsm8k_eval import add_data_flags, evaluate, run_command


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sglang.test.few_shot_gsm8k", description="Few-shot GSM8K of a running server, over /generate."
    )
    parser.add_argument("--num-shots", type=at_least(0), default=5)
    add_data_flags(parser)
    parser.add_argument("--num-questions", type=at_least(1), default=200)
    parser.add_argument("--max-new-tokens", type=at_least(1), default=512)
    parser.add_argument("--parallel", type=at_least(1), default=128, help="questions asked at a time")
    add_server_flags(parser)
    return parser


def run_eval(args: SimpleNamespace | argparse.Namespace) -> dict:
    """Ask a running server. `args` has the flags of this module as attributes; those it lacks take their defaults.

    Returns accuracy and invalid (shares), latency (s), output_throughput (tokens/s), n, ci_low and ci_high (the 95 %
    interval of accuracy) and output_file. Raises ValueError for arguments or data that can't be, EvalError when the
    run could not be finished.
    """
    defaults = vars(make_parser().parse_args([]))
    if unknown := vars(args).keys() - defaults.keys():
        raise ValueError(f"few_shot_gsm8k has no option {', '.join(sorted(unknown))}")
    args = SimpleNamespace(**(defaults | vars(args)))
    data = question_set(args.data_path, args.split, args.data_seed, args.num_shots, args.num_questions)
    print(f"{len(data.questions)} questions of {data.source}")
    url = server_url(args)
    result = evaluate(url, data.questions, "generate", data.shots, args.parallel, args.max_new_tokens, args.output_file)
    print(f"Accuracy: {result.score}")
    print(f"Invalid: {result.invalid:.3f}")
    print(f"Latency: {result.seconds:.3f} s")
    print(f"Output throughput: {result.tokens_per_second:.3f} token/s")
    low, high = result.score.interval
    return {
        "accuracy": result.score.share,
        "invalid": result.invalid,
        "latency": result.seconds,
        "output_throughput": result.tokens_per_second,
        "n": result.score.n,
        "ci_low": low,
        "ci_high": high,
        "output_file": args.output_file,
    }


def main(argv: list[str] | None = None) -> None:
    run_command(make_parser(), argv, run_eval)


if __name__ == "__main__":
    main()
