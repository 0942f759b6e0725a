"""From what happened to each request to the numbers of a record, named as upstream's. No I/O."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NOT_FINISHED = "cut off when the run was stopped"
FIGURES = ("e2e_latency", "ttft", "tpot", "itl")
GOODPUT_FIGURES = {"ttft": "ttft", "tpot": "tpot", "e2el": "latency"}  # name of an objective -> RequestResult's


@dataclass
class RequestResult:
    """What came of one prompt. Times are seconds; `sent_at` is on the clock of time.perf_counter()."""

    prompt_len: int  # tokens: as the server counted them, else as the dataset did
    output_len: int = 0  # tokens that came
    sent_at: float | None = None  # None: never sent
    ttft: float | None = None  # to the first chunk with a token; None: none came, or the answer was not streamed
    latency: float = 0.0  # to the end of the answer
    itls: list[float] = field(default_factory=list)  # one a token after the first chunk
    first_tokens: int = 0  # that came in the first chunk
    text: str = ""
    error: str = NOT_FINISHED  # empty: the answer is complete
    lost_connection: bool = False  # it failed below HTTP: the server may be gone
    cached_tokens: int | None = None  # of the prompt, from the prefix cache; None: the server does not say
    counted_chunks: bool = False  # no usage came: output_len is the number of chunks

    @property
    def ok(self) -> bool:
        return not self.error

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first one; None when there was just one, or no stream."""
        if self.ttft is None or self.output_len < 2:
            return None
        return (self.latency - self.ttft) / (self.output_len - 1)


def summarize(values: Sequence[float], name: str) -> dict[str, float | None]:
    """Mean, median, standard deviation and percentiles in milliseconds; None for all when there is no value."""
    ms = np.asarray(values, dtype=float) * 1e3
    figures = {
        "mean": np.mean,
        "median": np.median,
        "std": np.std,
        "p90": lambda x: np.percentile(x, 90),
        "p95": lambda x: np.percentile(x, 95),
        "p99": lambda x: np.percentile(x, 99),
    }
    return {f"{figure}_{name}_ms": float(of(ms)) if len(ms) else None for figure, of in figures.items()}


def metrics(
    results: Sequence[RequestResult], duration: float, objectives: dict[str, float] | None = None
) -> dict[str, Any]:
    """Numbers of a run of `duration` seconds. Only complete answers count, and `failed` and `not_sent` say what is
    missing. `objectives`: milliseconds by ttft, tpot, e2el, which an answer must all keep to count as goodput."""
    done = [r for r in results if r.ok]
    sent = [r for r in results if r.sent_at is not None]
    tokens_in, tokens_out = sum(r.prompt_len for r in done), sum(r.output_len for r in done)
    times, tokens = token_times(done)
    itls = list(itertools.chain.from_iterable(r.itls for r in done))

    def rate(count: float) -> float:
        return count / duration if duration else 0.0

    numbers = {
        "duration": duration,
        "completed": len(done),
        "failed": len(sent) - len(done),
        "not_sent": len(results) - len(sent),
        "total_input_tokens": tokens_in,
        "total_input_text_tokens": tokens_in,
        "total_input_vision_tokens": 0,
        "total_output_tokens": tokens_out,
        "request_throughput": rate(len(done)),
        "input_throughput": rate(tokens_in),
        "output_throughput": rate(tokens_out),
        "total_throughput": rate(tokens_in + tokens_out),
        "concurrency": rate(sum(r.latency for r in done)),
        "max_output_tokens_per_s": max(per_second(times, tokens), default=0),
        "max_concurrent_requests": most_at_once((r.sent_at, r.sent_at + r.latency) for r in sent),
        **summarize([r.latency for r in done], "e2e_latency"),
        **summarize([r.ttft for r in done if r.ttft is not None], "ttft"),
        **summarize([r.tpot for r in done if r.tpot is not None], "tpot"),
        **summarize(itls, "itl"),
        "max_itl_ms": max(itls) * 1e3 if itls else None,
    }
    if objectives:
        numbers["request_goodput"] = rate(sum(keeps(r, objectives) for r in done))
    return numbers


def cache_report(results: Sequence[RequestResult]) -> dict[str, Any]:
    """Tokens of complete answers' prompts, and how many of them came from the prefix cache; null where no server says
    it. Names are upstream's."""
    done = [r for r in results if r.ok]
    prompt = sum(r.prompt_len for r in done)
    said = [r.cached_tokens for r in done if r.cached_tokens is not None]
    cached = sum(said) if said else None
    return {
        "total_prompt_tokens": prompt,
        "total_cached_tokens": cached,
        "cache_hit_rate_pct": round(100 * cached / prompt, 2) if said and prompt else None,
    }


def keeps(result: RequestResult, objectives: dict[str, float]) -> bool:
    """Whether a complete answer met every objective (milliseconds); a figure that it has not is met."""
    values = {name: getattr(result, GOODPUT_FIGURES[name]) for name in objectives}
    return all(value is None or value * 1e3 <= objectives[name] for name, value in values.items())


def token_times(results: Iterable[RequestResult]) -> tuple[np.ndarray, np.ndarray]:
    """When output tokens came, on the clock of perf_counter(), and how many at each time."""
    times, tokens = [np.empty(0)], [np.empty(0, dtype=int)]
    for r in results:
        if r.ttft is None:  # not streamed: all came at the end
            times.append(np.array([r.sent_at + r.latency]))
            tokens.append(np.array([r.output_len]))
        else:
            times.append(r.sent_at + r.ttft + np.cumsum([0.0, *r.itls]))
            tokens.append(np.array([r.first_tokens, *[1] * len(r.itls)]))
    return np.concatenate(times), np.concatenate(tokens)


def per_second(times: np.ndarray, tokens: np.ndarray) -> list[int]:
    """Tokens in each whole second after the first token."""
    if not len(times):
        return []
    return np.bincount((times - times.min()).astype(int), weights=tokens).astype(int).tolist()


def most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    """The largest number of (start, end) spans that overlap; one that ends as another starts does not."""
    edges = sorted(edge for start, end in spans for edge in ((start, 1), (end, -1)))
    return max(itertools.accumulate(change for _, change in edges), default=0)
