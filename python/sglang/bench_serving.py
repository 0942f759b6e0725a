"""`python -m sglang.bench_serving [flags]`: measure a running server: throughput, latencies, failures.

Exit codes: 0 all requests were answered (or --allow-failures); 1 some were not, or there is no usable server; 2 the
flags or the dataset are wrong; 130 Ctrl-C. However a run ends, what was measured is saved.
"""

import argparse
import importlib.util
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from sglang.benchmark import INSTALL
from sglang.benchmark.datasets import add_dataset_arguments, check_dataset_arguments, count_prompts
from sglang.benchmark.unserved_flags import add_unserved
from sglang.srt.utils.server_address import add_server_flags

PROG = "python -m sglang.bench_serving"
BACKEND_NAMES = ("sglang", "sglang-native", "sglang-oai", "sglang-oai-chat", "vllm", "vllm-chat")
NATIVE = ("sglang", "sglang-native")
OBJECTIVES = ("ttft", "tpot", "e2el")


def make_parser(prog: str = PROG) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [--backend NAME] [--base-url URL] [--dataset-name NAME] [other flags]",
        description="Measure a running server: throughput, latencies and failures.",
        epilog="Exit codes: 0 all answered; 1 failures or no server; 2 wrong flags or dataset; 130 Ctrl-C.",
    )
    server = parser.add_argument_group("server")
    server.add_argument("--backend", choices=BACKEND_NAMES, default="sglang", help="its kind and endpoint (sglang)")
    add_server_flags(server, "(30000; of vllm and vllm-chat 8000)")
    server.add_argument("--model", help="name to ask for; the server's own if not given")
    server.add_argument("--served-model-name", metavar="NAME", help="the same; it goes before --model")
    server.add_argument("--tokenizer", metavar="FOLDER", help="holds tokenizer.json; the server's own if not given")
    server.add_argument(
        "--header", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="of every request; a key of "
        "the server's can also be in the environment variable OPENAI_API_KEY",
    )  # fmt: skip
    server.add_argument(
        "--ready-check-timeout-sec", type=float, default=60, metavar="S", help="wait so long for the server (60)"
    )
    load = parser.add_argument_group("load")
    load.add_argument(
        "--request-rate",
        type=float,
        default=math.inf,
        metavar="R",
        help="Poisson arrivals a second (inf: all at once)",
    )
    load.add_argument("--max-concurrency", type=int, metavar="N", help="requests at once (no limit)")
    load.add_argument("--warmup-requests", type=int, default=1, metavar="N", help="answers before the run (1)")
    load.add_argument("--flush-cache", action="store_true", help="empty the prefix cache before the run")
    add_dataset_arguments(parser)
    request = parser.add_argument_group("requests")
    request.add_argument("--temperature", type=float, default=0.0, metavar="T", help="(0.0)")
    request.add_argument("--top-p", type=float, default=1.0, metavar="P", help="(1.0)")
    request.add_argument("--disable-ignore-eos", action="store_true", help="let answers end where the model ends them")
    request.add_argument("--disable-stream", action="store_true", help="whole answers: no TTFT, TPOT and ITL")
    request.add_argument("--return-logprob", action="store_true", help="ask for the output tokens' log-probabilities")
    request.add_argument("--top-logprobs-num", type=int, metavar="N", help="of the N likeliest tokens too")
    request.add_argument("--token-ids-logprob", type=int, nargs="+", metavar="ID", help="of these tokens too")
    request.add_argument(
        "--logprob-start-len", type=int, metavar="N", help="of the prompt's tokens from there on; -1 none"
    )
    request.add_argument(
        "--extra-request-body", type=_json_object, default={}, metavar="JSON", help="fields to put into every body"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output-file", metavar="FILE", help="JSON lines, appended to ({backend}_{MMDD}_{prompts}_{in}_{out}.jsonl)"
    )
    output.add_argument("--output-details", action="store_true", help="lengths, times and texts of each request too")
    output.add_argument("--cache-report", action="store_true", help="how many prompt tokens came from the prefix cache")
    output.add_argument("--print-requests", action="store_true", help="each request when it has ended, a line of JSON")
    output.add_argument("--plot-throughput", action="store_true", help="a chart (PNG) beside the output file")
    output.add_argument("--tag", help="a text for the record")
    output.add_argument(
        "--goodput", nargs="+", default={}, action=_Objectives, metavar="NAME:MS",
        help=f"also count answers that keep every objective; names: {', '.join(OBJECTIVES)}",
    )  # fmt: skip
    output.add_argument("--disable-tqdm", action="store_true", help="no progress bar")
    output.add_argument("--allow-failures", action="store_true", help="exit with 0 although some requests failed")
    profile = parser.add_argument_group("profile")
    profile.add_argument("--profile", action="store_true", help="have the server write a torch profile of the run")
    profile.add_argument("--profile-num-steps", "--profile-steps", type=int, metavar="N", help="only the first N steps")
    profile.add_argument("--profile-start-step", type=int, metavar="N", help="from the server's step N on")
    profile.add_argument("--profile-prefix", metavar="TEXT", help="in front of the traces' file names")
    profile.add_argument("--profile-by-stage", action="store_true", help="prefill and decode apart")
    profile.add_argument("--profile-activities", nargs="+", choices=("CPU", "GPU"), help="(all that the server has)")
    profile.add_argument("--profile-output-dir", metavar="DIR", help="on the server's host; the server's own choice")
    add_unserved(parser)
    return parser


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("a JSON object is expected")
    return value


class _Objectives(argparse.Action):
    """`ttft:200 tpot:50` as {"ttft": 200.0, "tpot": 50.0}."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        objectives = {}
        for text in values:
            name, _, number = text.partition(":")
            try:
                objectives[name] = float(number)
            except ValueError:
                parser.error(f"--goodput {text}: NAME:MILLISECONDS is expected")
            if name not in OBJECTIVES or not objectives[name] > 0:
                parser.error(f"--goodput {text}: one of {', '.join(OBJECTIVES)} and a number above 0 are expected")
        setattr(namespace, self.dest, objectives)


def parse_args(argv: list[str], prog: str = PROG) -> argparse.Namespace:
    """Flags, checked against each other as far as that is possible without the server. Exits with 2 for wrong ones."""
    parser = make_parser(prog)
    args = parser.parse_args(argv)
    try:
        check_dataset_arguments(args)
        _check(args)
        args.output_file = Path(args.output_file or default_output_file(args))
        _check_writable(args.output_file)
    except ValueError as e:
        parser.error(str(e))
    return args


def _check(args: argparse.Namespace) -> None:
    chat = args.backend.endswith("-chat")
    for name, least in (
        ("max_concurrency", 1), ("warmup_requests", 0), ("profile_num_steps", 1), ("profile_start_step", 0),
        ("top_logprobs_num", 0), ("logprob_start_len", -1),
    ):  # fmt: skip
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    if not args.request_rate > 0:
        raise ValueError(f"--request-rate is {args.request_rate}; it must be above 0")
    if not 0 <= args.ready_check_timeout_sec < math.inf:
        raise ValueError(f"--ready-check-timeout-sec is {args.ready_check_timeout_sec}; it must be at least 0")
    if not 0 <= args.temperature < math.inf:
        raise ValueError(f"--temperature is {args.temperature}; it must be at least 0")
    if not 0 < args.top_p <= 1:
        raise ValueError(f"--top-p is {args.top_p}; above 0 and up to 1 are possible")
    if bad := [header for header in args.header if not header.partition("=")[1] or header.startswith("=")]:
        raise ValueError(f"--header {bad[0]}: NAME=VALUE is expected")
    for name in ("top_logprobs_num", "token_ids_logprob", "logprob_start_len"):
        flag = f"--{name.replace('_', '-')}"
        if getattr(args, name) is not None and not args.return_logprob:
            raise ValueError(f"{flag} needs --return-logprob")
        if getattr(args, name) is not None and name != "top_logprobs_num" and args.backend not in NATIVE:
            raise ValueError(f"{flag} is of /generate: it needs --backend sglang")
    if args.dataset_name == "openai" and not chat:
        raise ValueError("--dataset-name openai holds chats: it needs --backend sglang-oai-chat or vllm-chat")
    if chat and args.tokenize_prompt:
        raise ValueError(f"--tokenize-prompt sends token ids, which --backend {args.backend} does not take")
    if chat and args.apply_chat_template:
        raise ValueError(f"--apply-chat-template: with --backend {args.backend} the server applies it")
    if args.flush_cache and args.backend.startswith("vllm"):
        raise ValueError(f"--flush-cache is not possible with --backend {args.backend}")
    if args.disable_stream and args.goodput.keys() & {"ttft", "tpot"}:
        raise ValueError("--goodput with ttft or tpot needs a stream; leave --disable-stream out")
    if args.plot_throughput and importlib.util.find_spec("matplotlib") is None:
        raise ValueError(f"--plot-throughput needs matplotlib: {INSTALL}")


def default_output_file(args: argparse.Namespace) -> str:
    """upstream's name: {backend}_{MMDD}_{prompts}_{in}_{out}.jsonl, or with the dataset's name instead of lengths."""
    is_random = args.dataset_name in ("random", "random-ids")
    what = f"{args.random_input_len}_{args.random_output_len}" if is_random else args.dataset_name
    return f"{args.backend}_{time.strftime('%m%d')}_{count_prompts(args)}_{what}.jsonl"


def _check_writable(file: Path) -> None:
    """A run must not fail when all is measured."""
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ValueError(f"--output-file {file}: it can't be written there")


def main(argv: list[str], prog: str = PROG) -> int:
    args = parse_args(argv, prog)
    try:
        from sglang.benchmark.serving import run  # late: --help and mistakes need no extra packages
    except ModuleNotFoundError as e:
        if e.name not in ("aiohttp", "tqdm"):
            raise
        print(f"error: {e.name} is not installed: {INSTALL}", file=sys.stderr)
        return 1
    return run(args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
