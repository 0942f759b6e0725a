"""What GET /metrics tells: requests as the HTTP process sees them, and the scheduler's state of the moment it is asked.

Counting is plain numbers on the event loop, and prometheus_client writes them out when somebody asks. Nothing that
comes from a request becomes a name or a label.
"""

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from sglang.srt.managers.generation import Generation
from sglang.srt.managers.io_struct import TextOutput
from sglang.srt.managers.server_info import ServerInfo

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Upper bounds in seconds: close together where servers differ, from a small model on a fast card to a queue of minutes.
TOKEN_BOUNDS = (
    0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1,
    0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0,
)  # fmt: skip
WAIT_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0,
    8.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0,
)  # fmt: skip
REQUEST_BOUNDS = (
    0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 90.0, 120.0,
    180.0, 300.0, 600.0, 1200.0,
)  # fmt: skip


class Histogram:
    """Durations by size. `bounds`: upper bounds in seconds, rising; longer durations are counted too."""

    def __init__(self, bounds: tuple[float, ...]):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float, count: int = 1) -> None:
        """`count` durations of `seconds` each."""
        seconds = max(seconds, 0.0)  # the wall clock may have been set back
        self.counts[bisect_left(self.bounds, seconds)] += count
        self.sum += seconds * count

    def buckets(self) -> list[tuple[str, int]]:
        """Upper bounds as text, each with the number of durations up to it."""
        names = [*map(str, self.bounds), "+Inf"]
        return [(name, sum(self.counts[: i + 1])) for i, name in enumerate(names)]


class ServerMetrics:
    """The metrics of one server, label model_name. It is the RequestObserver of the TokenizerManager.

    A call with several prompts or n > 1 counts as so many requests.
    """

    def __init__(self, info: ServerInfo, startup_seconds: float):
        self.info = info
        self.startup_seconds = startup_seconds
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generation_tokens = 0
        self.requests = 0
        self.aborted_requests = 0
        self.first_token = Histogram(WAIT_BOUNDS)
        self.inter_token = Histogram(TOKEN_BOUNDS)
        self.e2e = Histogram(REQUEST_BOUNDS)
        self.queue_time = Histogram(WAIT_BOUNDS)
        self._state: dict = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    # ---- RequestObserver ---------------------------------------------------------------------------------------

    def on_output(self, generation: Generation, out: TextOutput, now: float) -> None:
        count = len(out.new_ids)
        if generation.updated:
            if count:  # tokens that come together share the wait for them
                self.inter_token.observe((now - generation.updated) / count, count)
        elif count or out.finish.type != "abort":  # the prompt has been computed
            self.prompt_tokens += generation.prompt_tokens
            self.cached_tokens += out.report.cached_tokens
            self.queue_time.observe(out.report.queue_time)
            if count:
                self.first_token.observe(now - generation.created)
        self.generation_tokens += count

    def on_refused(self, count: int) -> None:
        self.requests += count
        self.aborted_requests += count

    def on_end(self, generation: Generation) -> None:
        self.requests += 1
        if generation.finish.type == "abort":
            self.aborted_requests += 1
        else:
            self.e2e.observe(generation.ended - generation.created)

    # ---- the text ----------------------------------------------------------------------------------------------

    def text(self, state: dict) -> bytes:
        """All metrics in Prometheus' text format. `state`: what TokenizerManager.internal_state() gave just now."""
        self._state = state
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        label = [self.info.served_model_name]
        for name, (value, text) in self._gauges().items():
            gauge = GaugeMetricFamily(f"sglang:{name}", text, labels=["model_name"])
            gauge.add_metric(label, value)
            yield gauge
        for name, (value, text) in self._counters().items():
            counter = CounterMetricFamily(f"sglang:{name}", text, labels=["model_name"])
            counter.add_metric(label, value)
            yield counter
        for name, (histogram, text) in self._histograms().items():
            family = HistogramMetricFamily(f"sglang:{name}", text, labels=["model_name"])
            family.add_metric(label, histogram.buckets(), histogram.sum)
            yield family

    def _gauges(self) -> dict[str, tuple[float, str]]:
        state, running = self._state, self._state["num_running_reqs"]
        full = _share(state["full_used"], state["full_capacity"])
        swa = _share(state["swa_used"], state["swa_capacity"])
        cached = state["cached_tokens_total"]
        gauges = {
            "num_running_reqs": (running, "Requests being computed."),
            "num_queue_reqs": (state["num_queue_reqs"], "Requests that wait to be computed."),
            "num_retracted_reqs": (state["num_retracted_reqs"], "Requests retracted that wait to resume."),
            "utilization": (running / self.info.max_running_requests, "Running requests per request that may run."),
            "num_used_tokens": (state["full_used"], "Tokens whose KV memory running requests hold."),
            "token_usage": (state["token_usage"], "Share of KV memory in which running requests hold tokens."),
            "full_token_usage": (full, "Of the full layers' tokens that could be held, the share that requests hold."),
            "swa_token_usage": (swa, "Of the sliding layers' tokens that could be held, the share requests hold."),
            "max_total_num_tokens": (state["full_capacity"], "Full layers' tokens that KV memory could hold."),
            "max_total_num_tokens_swa": (state["swa_capacity"], "Sliding layers' tokens that KV memory could hold."),
            "cache_hit_rate": (
                _share(cached, cached + state["prompt_tokens_total"]),
                "Share of prompt tokens that came from the prefix cache since the start.",
            ),
            "gen_throughput": (
                state["last_gen_throughput"] if running else 0.0,
                "Tokens generated a second, over the decode steps between the last two log lines.",
            ),
            "startup_time_seconds": (self.startup_seconds, "Seconds from the command to the loaded model."),
        }
        if "host_capacity" in state:
            gauges["hicache_host_used_tokens"] = (state["host_cached"], "Full layers' tokens that the host tier holds.")
            gauges["hicache_host_total_tokens"] = (state["host_capacity"], "Those that it could hold.")
        if (length := state.get("avg_spec_accept_length")) is not None:
            rate = (length - 1) / self.info.speculative_num_steps
            gauges["spec_accept_length"] = (length, "Mean tokens a verified draft gave, the target's own included.")
            gauges["spec_accept_rate"] = (rate, "Share of drafted steps that were accepted.")
        return gauges

    def _counters(self) -> dict[str, tuple[int, str]]:
        counters = {
            "prompt_tokens_total": (self.prompt_tokens, "Prompt tokens of requests whose prompt was computed."),
            "cached_tokens_total": (self.cached_tokens, "Prompt tokens that came from the prefix cache."),
            "generation_tokens_total": (self.generation_tokens, "Tokens generated."),
            "num_requests_total": (self.requests, "Requests that have ended, aborted ones included."),
            "num_aborted_requests_total": (
                self.aborted_requests,
                "Requests that were aborted, left by their client or refused by a full queue.",
            ),
        }
        if (loaded := self._state.get("host_loaded_tokens_total")) is not None:
            counters["load_back_tokens_total"] = (loaded, "Tokens that came back from the host tier.")
        return counters

    def _histograms(self) -> dict[str, tuple[Histogram, str]]:
        return {
            "time_to_first_token_seconds": (self.first_token, "From a request's arrival to its first token."),
            "inter_token_latency_seconds": (self.inter_token, "Between two tokens of a request."),
            "e2e_request_latency_seconds": (self.e2e, "From a request's arrival to its end, without aborted ones."),
            "queue_time_seconds": (self.queue_time, "From a request's arrival to its first step."),
        }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
