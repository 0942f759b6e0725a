"""What a run leaves behind: the printed block, a JSON line, and a chart of its throughput over time."""

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sglang.benchmark.load import Outcome
from sglang.benchmark.metrics import RequestResult, cache_report, per_second, token_times

WIDTH = 50
SHOWN_ERRORS = 3
SECTIONS = {  # figure -> its heading, its name in the lines below
    "e2e_latency": ("End-to-End Latency", "E2E Latency"),
    "ttft": ("Time to First Token", "TTFT"),
    "tpot": ("Time per Output Token (excl. 1st token)", "TPOT"),
    "itl": ("Inter-Token Latency", "ITL"),
}


def make_record(
    args: argparse.Namespace,
    outcome: Outcome,
    numbers: dict[str, Any],
    server_info: dict[str, Any] | None,
    retokenized: int | None,
) -> dict[str, Any]:
    """The JSON line of a run: settings, what the server says of itself, the numbers, and how it ended. An infinite
    rate is the text "inf": JSON has no such number. A figure that nothing was measured for is null."""
    record = {
        "tag": args.tag,
        "backend": args.backend,
        "dataset_name": args.dataset_name,
        "num_prompts": len(outcome.results),
        "seed": args.seed,
        "request_rate": "inf" if math.isinf(args.request_rate) else args.request_rate,
        "max_concurrency": args.max_concurrency,
        "sharegpt_output_len": args.sharegpt_output_len,
        "random_input_len": args.random_input_len,
        "random_output_len": args.random_output_len,
        "random_range_ratio": args.random_range_ratio,
        "server_info": server_info,
        **numbers,
        "total_output_tokens_retokenized": retokenized,
        "accept_length": accept_length(server_info),
        "interrupted": outcome.stopped,
        "error_counts": error_counts(outcome.results),
    }
    if args.cache_report:
        record["cache_report"] = cache_report(outcome.results)
    return record | (details(outcome.results) if args.output_details else {})


def accept_length(server_info: dict[str, Any] | None) -> float | None:
    """The server's average over its life, the bonus token included; None without speculation."""
    states = (server_info or {}).get("internal_states") or [{}]
    return states[0].get("avg_spec_accept_length")


def error_counts(results: Sequence[RequestResult]) -> dict[str, int]:
    """How often each message came, the most frequent first."""
    return dict(Counter(r.error for r in results if r.sent_at is not None and r.error).most_common())


def details(results: Sequence[RequestResult]) -> dict[str, list]:
    """Columns with one entry a prompt, in the order of the dataset."""
    return {
        "input_lens": [r.prompt_len for r in results],
        "output_lens": [r.output_len for r in results],
        "ttfts": [r.ttft for r in results],
        "itls": [r.itls for r in results],
        "generated_texts": [r.text for r in results],
        "cached_tokens": [r.cached_tokens for r in results],
        "errors": [r.error for r in results],
    }


def save_record(record: dict[str, Any], path: Path) -> None:
    """Append one line; a file that lacks its last line end gets it first."""
    with path.open("ab+") as file:
        size = file.tell()
        file.seek(max(0, size - 1))
        start = b"" if file.read(1) in (b"", b"\n") else b"\n"
        file.write(start + msgspec.json.encode(record) + b"\n")


# ---- the printed block ----------------------------------------------------------------------------------------------


def result_block(record: dict[str, Any]) -> str:
    lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}"]

    def add(name: str, value: Any) -> None:
        lines.append(f"{name + ':':<40} {_shown(value):<10}".rstrip())

    add("Backend", record["backend"])
    add("Traffic request rate", record["request_rate"])
    add("Max request concurrency", record["max_concurrency"] or "not set")
    add("Successful requests", record["completed"])
    if record["failed"] or record["not_sent"]:
        add("Failed requests", record["failed"])
        add("Requests not sent", record["not_sent"])
    add("Benchmark duration (s)", record["duration"])
    add("Total input tokens", record["total_input_tokens"])
    add("Total input text tokens", record["total_input_text_tokens"])
    add("Total generated tokens", record["total_output_tokens"])
    add("Total generated tokens (retokenized)", record["total_output_tokens_retokenized"])
    add("Request throughput (req/s)", record["request_throughput"])
    if "request_goodput" in record:
        add("Request goodput (req/s)", record["request_goodput"])
    add("Input token throughput (tok/s)", record["input_throughput"])
    add("Output token throughput (tok/s)", record["output_throughput"])
    add("Peak output token throughput (tok/s)", record["max_output_tokens_per_s"])
    add("Peak concurrent requests", record["max_concurrent_requests"])
    add("Total token throughput (tok/s)", record["total_throughput"])
    add("Concurrency", record["concurrency"])
    if record["accept_length"] is not None:
        add("Accept length", record["accept_length"])
    for figure, (heading, name) in SECTIONS.items():
        lines.append(f"{heading:-^{WIDTH}}")
        for kind in ("Mean", "Median", "P90", "P95", "P99"):
            add(f"{kind} {name} (ms)", record[f"{kind.lower()}_{figure}_ms"])
    add("Max ITL (ms)", record["max_itl_ms"])
    if report := record.get("cache_report"):
        lines.append(f"{'Cache Hit Details':-^{WIDTH}}")
        add("Total prompt tokens", report["total_prompt_tokens"])
        add("Total cached tokens", report["total_cached_tokens"])
        add("Cache hit rate (%)", report["cache_hit_rate_pct"])
    return "\n".join([*lines, "=" * WIDTH])


def _shown(value: Any) -> str:
    if value is None:
        return "n/a"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def failure_lines(record: dict[str, Any]) -> list[str]:
    """What went wrong, the most frequent messages first; empty when nothing did."""
    lines = [f"the run ended early: {record['interrupted']}"] if record["interrupted"] else []
    if record["failed"] or record["not_sent"]:
        failed, not_sent = record["failed"], record["not_sent"]
        lines.append(f"of {record['num_prompts']} requests {failed} failed and {not_sent} were not sent")
    counts = list(record["error_counts"].items())
    lines += [f"  {count} x {message}" for message, count in counts[:SHOWN_ERRORS]]
    if len(counts) > SHOWN_ERRORS:
        lines.append(f"  and {len(counts) - SHOWN_ERRORS} other messages, in the output file")
    return lines


# ---- the chart ------------------------------------------------------------------------------------------------------


def plot_throughput(results: Sequence[RequestResult], path: Path, title: str) -> None:
    """A PNG: output tokens of each second, and requests under way at the same times. Needs matplotlib (extra bench)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    rates, running = figure.subplots(2, sharex=True)
    done = [r for r in results if r.ok]
    times, tokens = token_times(done)
    begin = min((r.sent_at for r in done), default=0.0)
    first = times.min() - begin if len(times) else 0.0
    counts = per_second(times, tokens)
    rates.stairs(counts, first + np.arange(len(counts) + 1), fill=True)
    rates.set(ylabel="output tokens/s", title=title)
    edges = sorted(e for r in done for e in ((r.sent_at - begin, 1), (r.sent_at - begin + r.latency, -1)))
    if edges:
        at, change = zip(*edges, strict=True)
        running.step(at, np.cumsum(change), where="post")
    running.set(xlabel="seconds", ylabel="requests under way")
    for axis in (rates, running):
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
