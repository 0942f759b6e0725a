"""One measured run from the address of a server to an exit code: what `sglang.bench_serving` does with its flags."""

import argparse
import asyncio
import contextlib
import dataclasses
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from tqdm import tqdm

from sglang.benchmark.backends import BACKENDS, RequestOptions, send
from sglang.benchmark.datasets import DatasetRow, get_dataset
from sglang.benchmark.load import Outcome, Stop, arrival_times, run_load
from sglang.benchmark.metrics import RequestResult, metrics
from sglang.benchmark.report import failure_lines, make_record, plot_throughput, result_block, save_record
from sglang.benchmark.server import BenchServer, ServedModel, ServerProblem
from sglang.srt.model_loader.hub import tokenizer_folder
from sglang.srt.utils.server_address import server_url
from sglang.srt.utils.tokenizer import Tokenizer

WARMUP_TOKENS = 32  # an answer of a warm-up is not longer
REQUEST_SECONDS = 6 * 3600.0
FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130
SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


LOGPROB_FIELDS = ("top_logprobs_num", "token_ids_logprob", "logprob_start_len")


class WrongInput(Exception):
    """The dataset or the tokenizer can't be used, or not with this server; one line."""


def run(args: argparse.Namespace) -> int:
    """Measure, print, save; the exit code."""
    try:
        return asyncio.run(_run(args))
    except ServerProblem as e:
        return _error(str(e), FAILED)
    except WrongInput as e:
        return _error(str(e), WRONG_INPUT)
    except KeyboardInterrupt:
        return _error("interrupted", INTERRUPTED)


def _error(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


async def _run(args: argparse.Namespace) -> int:
    backend = BACKENDS[args.backend]
    url = server_url(args, backend.default_port)
    # A connection for each request, as from clients of their own: none can have been closed by the server meanwhile.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers(args)) as session:
        server = BenchServer(session, url, backend)
        await server.wait_ready(args.ready_check_timeout_sec)
        info = await server.info()
        asked_for = args.served_model_name or args.model
        model = ServedModel(asked_for, None) if asked_for else await server.model()
        try:
            tokenizer = await find_tokenizer(args, server, model.name)
            rows = get_dataset(args, tokenizer, (info or {}).get("vocab_size"), backend.is_chat)
            check_context(rows, info, model)
        except ValueError as e:
            raise WrongInput(str(e)) from e
        options = request_options(args, model.name, info)
        print(
            f"{len(rows)} prompts to {url}{backend.path}: {sum(row.prompt_len for row in rows)} input tokens, "
            f"at most {sum(row.output_len for row in rows)} output tokens",
            flush=True,
        )
        await prepare(args, server, rows[0], options)
        outcome = await measure(args, server, rows, options)
        info, problems = await finish(args, server, outcome, info)
    return report(args, outcome, info, tokenizer, problems)


def headers(args: argparse.Namespace) -> dict[str, str]:
    """Of every request. A key from the environment is overridden by a header of the same name."""
    found = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        found["Authorization"] = f"Bearer {key}"
    for header in args.header:
        name, _, value = header.partition("=")
        found = {k: v for k, v in found.items() if k.lower() != name.lower()} | {name: value}
    return found


async def find_tokenizer(args: argparse.Namespace, server: BenchServer, model: str) -> Tokenizer | None:
    """That of --tokenizer, else the server's if its folder is on this machine. Raises ValueError for a bad folder."""
    if args.tokenizer:
        return Tokenizer(tokenizer_folder("--tokenizer", args.tokenizer, print))
    folder = await server.tokenizer_path() or model
    return Tokenizer(folder) if Path(folder, "tokenizer.json").is_file() else None


def check_context(rows: list[DatasetRow], info: dict[str, Any] | None, model: ServedModel) -> None:
    """Raises ValueError for the first prompt that the server could not answer in full, if it tells its limits."""
    info = info or {}
    limit, longest = info.get("context_length") or model.context_length, info.get("max_req_input_len")
    for i, row in enumerate(rows):
        if limit and row.prompt_len + row.output_len > limit:
            raise ValueError(
                f"prompt {i} has {row.prompt_len} tokens and asks for {row.output_len} more; the server's context "
                f"holds {limit}: choose shorter lengths"
            )
        if longest and row.prompt_len > longest:
            raise ValueError(f"prompt {i} has {row.prompt_len} tokens; the server takes prompts of up to {longest}")


def request_options(args: argparse.Namespace, model: str, info: dict[str, Any] | None) -> RequestOptions:
    return RequestOptions(
        model=model,
        temperature=args.temperature,
        top_p=args.top_p,
        ignore_eos=not args.disable_ignore_eos,
        stream=not args.disable_stream,
        return_logprob=args.return_logprob,
        logprobs={name: value for name in LOGPROB_FIELDS if (value := getattr(args, name)) is not None},
        extra_body=args.extra_request_body,
        incremental=bool((info or {}).get("incremental_streaming_output")),
    )


async def prepare(args: argparse.Namespace, server: BenchServer, row: DatasetRow, options: RequestOptions) -> None:
    """Warm up with the first prompt, empty the cache, start a profile: what was asked for of these."""
    short = dataclasses.replace(row, output_len=min(row.output_len, WARMUP_TOKENS))
    results = [RequestResult(row.prompt_len) for _ in range(args.warmup_requests)]
    await asyncio.gather(*(send(server.session, server.url, server.backend, short, options, r) for r in results))
    if failed := [r for r in results if not r.ok]:
        raise ServerProblem(f"{len(failed)} of {len(results)} warm-up requests failed: {failed[0].error}")
    if args.flush_cache:
        await server.flush_cache()
    if args.profile:
        wanted = {
            "activities": args.profile_activities,
            "num_steps": args.profile_num_steps,
            "start_step": args.profile_start_step,
            "profile_prefix": args.profile_prefix,
            "profile_by_stage": args.profile_by_stage or None,
            "output_dir": args.profile_output_dir,
        }
        await server.start_profile({k: v for k, v in wanted.items() if v is not None})


async def measure(
    args: argparse.Namespace, server: BenchServer, rows: list[DatasetRow], options: RequestOptions
) -> Outcome:
    """The run itself. It ends early when the server is gone or at the first signal; a second one is not waited for."""
    stop = Stop()

    async def send_one(row: DatasetRow, result: RequestResult) -> None:
        await send(server.session, server.url, server.backend, row, options, result)
        if args.print_requests:
            tqdm.write(request_line(row, result))
        if result.lost_connection and stop.reason is None and await server.is_gone():
            stop.set(f"the server at {server.url} is gone")

    arrivals = arrival_times(len(rows), args.request_rate, args.seed)
    hidden = True if args.disable_tqdm else None  # None: on a terminal only
    with signals_stop(stop), tqdm(total=len(rows), unit="req", disable=hidden) as bar:
        return await run_load(rows, arrivals, send_one, stop, args.max_concurrency, lambda result: bar.update())


def request_line(row: DatasetRow, result: RequestResult) -> str:
    """What came of a request, as one line of JSON; a prompt of ids as ids."""
    shown = {"prompt": row.messages or row.prompt, "text": result.text, "error": result.error}
    times = {"latency": result.latency, "ttft": result.ttft}
    lengths = {"prompt_len": result.prompt_len, "output_len": result.output_len}
    return msgspec.json.encode(lengths | times | shown).decode()


@contextlib.contextmanager
def signals_stop(stop: Stop) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets `stop`; then, and afterwards, they do what they always do."""
    loop = asyncio.get_running_loop()
    before = {each: signal.getsignal(each) for each in SIGNALS}

    def restore() -> None:
        for each, handler in before.items():
            loop.remove_signal_handler(each)
            signal.signal(each, handler)

    def on_signal(number: signal.Signals) -> None:
        restore()
        stop.set(SIGNALS[number])

    for each in SIGNALS:
        loop.add_signal_handler(each, on_signal, each)
    try:
        yield
    finally:
        restore()


async def finish(
    args: argparse.Namespace, server: BenchServer, outcome: Outcome, info: dict[str, Any] | None
) -> tuple[dict[str, Any] | None, list[str]]:
    """End the profile, and ask the server about itself again, since it tells of the run now. Returns what it says (or
    said before) and what went wrong."""
    try:
        if args.profile:
            await server.stop_profile(has_limit=args.profile_num_steps is not None)
        return await server.info(), []
    except ServerProblem as e:
        return info, [] if outcome.stopped else [str(e)]  # of a server that is gone enough is said
    except asyncio.CancelledError:  # Ctrl-C: what was measured is still to be saved
        return info, ["interrupted while the server was asked for its profile and state"]


def report(
    args: argparse.Namespace,
    outcome: Outcome,
    info: dict[str, Any] | None,
    tokenizer: Tokenizer | None,
    problems: list[str],
) -> int:
    """Print and save; the exit code. `problems`: what went wrong beside the requests."""
    numbers = metrics(outcome.results, outcome.duration, args.goodput)
    retokenized = tokenizer and sum(len(tokenizer.encode(r.text, False)) for r in outcome.results if r.ok)
    record = make_record(args, outcome, numbers, info, retokenized)
    try:
        save_record(record, args.output_file)
    except OSError as e:
        problems.append(f"--output-file {args.output_file}: {e.strerror}; the record follows")
        print(msgspec.json.encode(record).decode())
    print(result_block(record))
    if uncounted := sum(r.ok and r.counted_chunks for r in outcome.results):
        print(f"note: {uncounted} answers came without usage; their chunks were counted as tokens")
    print(f"Saved to {args.output_file}")
    if args.plot_throughput:
        chart = args.output_file.with_suffix(".png")
        plot_throughput(outcome.results, chart, f"{args.backend}, {args.dataset_name}, {len(outcome.results)} prompts")
        print(f"Chart in {chart}")
    for line in [*problems, *failure_lines(record)]:
        print(line if line.startswith(" ") else f"error: {line}", file=sys.stderr)
    if outcome.stopped in SIGNALS.values():
        return INTERRUPTED
    tolerated = args.allow_failures and numbers["completed"]
    return FAILED if outcome.stopped or problems or (numbers["failed"] and not tolerated) else 0


if __name__ == "__main__":  # upstream's newer name of the command
    runpy.run_module("sglang.bench_serving", run_name="__main__", alter_sys=True)
