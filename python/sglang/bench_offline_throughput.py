"""`python -m sglang.bench_offline_throughput`: how many tokens a second the in-process Engine makes of many prompts.

    python -m sglang.bench_offline_throughput --model-path FOLDER --dataset-name random-ids --tokenize-prompt \\
        --random-range-ratio 1 --num-prompts 256

Takes the server's flags and the prompts' of bench_serving. All requests are there at once, and no HTTP is between. Exit
codes: 2 for a mistake of the user's, 1 when a request failed.
"""

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sglang.srt.arg_fields import OneLineParser
from sglang.srt.model_loader.hub import with_folders
from sglang.srt.server_args import ServerArgs, model_folder, parse_with_server_args
from sglang.srt.utils.child import STARTUP_FAILED, startup_errors

if TYPE_CHECKING:
    from sglang.benchmark.datasets import DatasetRow
    from sglang.srt.entrypoints.engine import Engine

WARMUP_REQUESTS, WARMUP_INPUT, WARMUP_OUTPUT = 16, 256, 16  # requests and tokens
PROFILE_STEPS = 5  # recorded of each stage
SHOWN_FAILURES = 5


@dataclass(frozen=True)
class Throughput:
    """Figures as upstream names them: seconds, and tokens or requests a second. Failed requests count in none of them
    but `failed_requests`."""

    successful_requests: int
    failed_requests: int
    total_latency: float
    total_input_tokens: int
    total_output_tokens: int
    last_gen_throughput: float | None  # None when the engine has died
    request_throughput: float
    input_throughput: float
    output_throughput: float
    total_throughput: float


def make_rows(typed: ServerArgs, own: argparse.Namespace) -> list["DatasetRow"]:
    """The prompts. Raises ValueError or OSError for flags, files or a model folder that give none."""
    from sglang.benchmark.datasets import get_dataset
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.utils.tokenizer import Tokenizer

    folder = model_folder(typed)
    config = ModelConfig.load(folder, typed.json_model_override_args, typed.context_length, typed.dtype)
    tokenizer = None
    if not typed.skip_tokenizer_init:
        tokenizer = Tokenizer(typed.tokenizer_path or folder, typed.chat_template)
    rows = get_dataset(own, tokenizer, config.vocab_size)
    if typed.skip_tokenizer_init and any(isinstance(row.prompt, str) for row in rows):
        raise ValueError("--skip-tokenizer-init: the prompts must be ids; add --tokenize-prompt")
    longest = max(row.prompt_len + row.output_len for row in rows)
    if longest > config.context_len:
        raise ValueError(
            f"a prompt and its answer have {longest} tokens together, the context holds {config.context_len}"
        )
    return rows


async def ask(engine: "Engine", row: "DatasetRow", params: dict) -> dict | Exception:
    """A request's answer, or what the engine says went wrong."""
    prompt = {"prompt": row.prompt} if isinstance(row.prompt, str) else {"input_ids": row.prompt}
    try:
        answer = await engine.async_generate(**prompt, sampling_params={**params, "max_new_tokens": row.output_len})
    except (ValueError, RuntimeError) as e:
        return e
    reason = answer["meta_info"]["finish_reason"]
    return RuntimeError(reason["message"]) if reason["type"] == "abort" else answer


async def ask_all(engine: "Engine", rows: list["DatasetRow"], params: dict) -> list[dict | Exception]:
    return await asyncio.gather(*(ask(engine, row, params) for row in rows))


def warm_up(engine: "Engine") -> None:
    """Requests unlike the measured ones, for what is made on first use. Raises RuntimeError when they fail."""
    import numpy as np

    from sglang.benchmark.datasets import DatasetRow

    info = engine.get_server_info()
    length = min(WARMUP_INPUT, max(1, info["max_req_input_len"] - WARMUP_OUTPUT))
    ids = np.random.default_rng(0).integers(0, info["vocab_size"], (WARMUP_REQUESTS, length)).tolist()
    rows = [DatasetRow(prompt, length, WARMUP_OUTPUT) for prompt in ids]
    for answer in asyncio.run(ask_all(engine, rows, {"temperature": 0, "ignore_eos": True})):
        if isinstance(answer, Exception):
            raise RuntimeError(f"a warm-up request failed: {answer}") from answer
    engine.flush_cache()


def measure(
    engine: "Engine", rows: list["DatasetRow"], own: argparse.Namespace
) -> tuple[Throughput, list[dict | Exception]]:
    params = {"temperature": 0, "ignore_eos": not own.disable_ignore_eos}
    if own.profile:
        engine.start_profile(num_steps=PROFILE_STEPS, profile_by_stage=True, profile_prefix="bench_offline_throughput")
    start = time.perf_counter()
    answers = asyncio.run(ask_all(engine, rows, params))
    seconds = time.perf_counter() - start
    good = [answer["meta_info"] for answer in answers if not isinstance(answer, Exception)]
    tokens_in = sum(meta["prompt_tokens"] for meta in good)
    tokens_out = sum(meta["completion_tokens"] for meta in good)
    figures = Throughput(
        successful_requests=len(good),
        failed_requests=len(answers) - len(good),
        total_latency=seconds,
        total_input_tokens=tokens_in,
        total_output_tokens=tokens_out,
        last_gen_throughput=last_gen_throughput(engine),
        request_throughput=len(good) / seconds,
        input_throughput=tokens_in / seconds,
        output_throughput=tokens_out / seconds,
        total_throughput=(tokens_in + tokens_out) / seconds,
    )
    return figures, answers


def last_gen_throughput(engine: "Engine") -> float | None:
    try:
        return engine.get_server_info()["internal_states"][0]["last_gen_throughput"]
    except RuntimeError:  # the answers tell why; their figures are to be saved all the same
        return None


def print_block(backend: str, figures: Throughput) -> None:
    print(f"\n{' Offline Throughput Benchmark Result ':=^55}")
    for name, value in (
        ("Backend:", backend),
        ("Successful requests:", figures.successful_requests),
        ("Failed requests:", figures.failed_requests),
        ("Benchmark duration (s):", figures.total_latency),
        ("Total input tokens:", figures.total_input_tokens),
        ("Total generated tokens:", figures.total_output_tokens),
        ("Last generation throughput (tok/s):", figures.last_gen_throughput),
        ("Request throughput (req/s):", figures.request_throughput),
        ("Input token throughput (tok/s):", figures.input_throughput),
        ("Output token throughput (tok/s):", figures.output_throughput),
        ("Total token throughput (tok/s):", figures.total_throughput),
    ):
        print(f"{name:<40} {value:<.2f}" if isinstance(value, float) else f"{name:<40} {value}")
    print("=" * 55)


def print_profile(engine: "Engine") -> None:
    from sglang.srt.utils.trace_table import stage_table

    profile = engine.get_server_info()["internal_states"][0]["profile"]
    if profile["running"]:  # fewer steps than were to be recorded
        profile = engine.stop_profile()
    if profile["error"]:
        raise RuntimeError(profile["error"])
    for path in profile["files"]:
        print(f"\n{path}\n{stage_table(path).text(limit=30)}")


def add_flags(parser: OneLineParser) -> None:
    from sglang.benchmark.datasets import add_dataset_arguments

    parser.set_defaults(log_level="error")
    group = parser.add_argument_group("benchmark (--log-level is error here if not given)")
    group.add_argument("--backend", choices=("engine",), default="engine", help="what makes the tokens (engine)")
    group.add_argument("--result-filename", default="", metavar="PATH", help="a JSON line of the run is added here")
    group.add_argument("--skip-warmup", action="store_true", help="measure the first requests too")
    group.add_argument("--disable-ignore-eos", action="store_true", help="let answers end before their length")
    group.add_argument(
        "--profile",
        action="store_true",
        help=f"torch's profiler over {PROFILE_STEPS} steps of each stage: traces into SGLANG_TORCH_PROFILER_DIR "
        "(/tmp), tables after the result",
    )
    add_dataset_arguments(parser)


def main(argv: list[str], prog: str = "python -m sglang.bench_offline_throughput") -> int:
    typed, own = parse_with_server_args(argv, prog, "Throughput of the in-process engine.", add_flags)
    with startup_errors():
        typed = with_folders(typed, print)
        rows = make_rows(typed, own)
        if own.result_filename:
            open(own.result_filename, "a").close()  # it must not fail after the run
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.managers.process_supervisor import ChildDied

    try:
        engine = Engine(**typed.to_dict())
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return STARTUP_FAILED
    except ChildDied as death:
        if not death.explained:
            print(f"error: {death}", file=sys.stderr)
        return STARTUP_FAILED
    with engine:
        try:
            if not own.skip_warmup:
                warm_up(engine)
            figures, answers = measure(engine, rows, own)
            print_block(own.backend, figures)
            if own.result_filename:
                record = {"backend": own.backend, "dataset_name": own.dataset_name, **asdict(figures)}
                with open(own.result_filename, "a") as file:
                    file.write(json.dumps(record) + "\n")
            if own.profile:
                print_profile(engine)
        except (ValueError, RuntimeError) as e:
            print(f"error: {e}", file=sys.stderr)
            return 1
    failures = [answer for answer in answers if isinstance(answer, Exception)]
    for failure in failures[:SHOWN_FAILURES]:
        print(f"failed: {failure}", file=sys.stderr)
    if failures:
        print(f"error: {len(failures)} of {len(rows)} requests failed", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
