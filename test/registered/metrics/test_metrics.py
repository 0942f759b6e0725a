"""GET /metrics: exact values after known requests, who may read them, and the scheduler's state behind the gauges."""

import itertools
import json
import math
import socket
import sys
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sglang.srt.managers.generation import Generation, GenerationGroup, Prompt
from sglang.srt.managers.io_struct import FinishReason, InternalStateReq, RequestReport, TextOutput
from sglang.srt.managers.scheduler_stats import SchedulerStats
from sglang.srt.managers.server_info import ServerInfo
from sglang.srt.metrics.server_metrics import REQUEST_BOUNDS, TOKEN_BOUNDS, WAIT_BOUNDS, Histogram, ServerMetrics
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.scheduler_harness import Harness
from sglang.test.server_process import ServerProcess, wait_for
from sglang.test.tiny_tokenizer import make_model_folder

register_cpu_ci(est_time=5, suite="base-a-test-cpu")

GAUGES = {
    "num_running_reqs", "num_queue_reqs", "num_used_tokens", "token_usage", "full_token_usage", "swa_token_usage",
    "cache_hit_rate", "gen_throughput", "max_total_num_tokens", "max_total_num_tokens_swa", "num_retracted_reqs",
    "utilization", "startup_time_seconds",
}  # fmt: skip
SPECULATION = {"spec_accept_length", "spec_accept_rate"}
COUNTERS = {
    "prompt_tokens_total", "generation_tokens_total", "cached_tokens_total", "num_requests_total",
    "num_aborted_requests_total",
}  # fmt: skip
HISTOGRAMS = {
    "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds", "queue_time_seconds",
}  # fmt: skip
NAME = 'a "model"\\n'  # what must be escaped in a label
KEY = {"Authorization": "Bearer k1"}


def read(text: str, model_name: str) -> dict[str, float]:
    """Values by name without its prefix, buckets as name_bucket/bound. Each sample has the label and no other."""
    values = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            name = sample.name.removeprefix("sglang:")
            assert name != sample.name and name not in values
            labels = dict(sample.labels)
            if bound := labels.pop("le", None):
                name = f"{name}/{bound}"
            assert labels == {"model_name": model_name}
            values[name] = sample.value
    return values


def scrape(server: ServerProcess, headers: dict | None = None, model_name: str = "m") -> dict[str, float]:
    reply = server.client.get("/metrics", headers=headers)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return read(reply.text, model_name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return make_model_folder(tmp_path_factory.mktemp("m"))


@pytest.fixture(scope="module")
def start(folder):
    """start(*flags): a running server with a fake scheduler."""
    servers = []

    def start(*flags: str) -> ServerProcess:
        server = ServerProcess("sglang.test.fake_server", "--model-path", folder, *flags)
        servers.append(server)
        server.wait_ready()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def server(start) -> ServerProcess:
    return start("--enable-metrics", "--served-model-name", "m")


# ---- a server ------------------------------------------------------------------------------------------------------


def test_names_and_a_fresh_server(server):
    """Our own first request and the health probes are nobody's requests."""
    assert server.client.get("/health_generate").status_code == 200
    values = scrape(server)
    sums = {f"{name}{end}" for name in HISTOGRAMS for end in ("_sum", "_count")}
    assert {name for name in values if "/" not in name} == GAUGES | COUNTERS | sums
    assert [name for name in COUNTERS | sums if values[name]] == []
    assert (values["max_total_num_tokens"], values["num_running_reqs"]) == (65536, 0)
    assert 0 < values["startup_time_seconds"] < 60
    assert "/metrics" not in server.output()


def test_known_requests_are_counted_exactly(server):
    before = scrape(server)
    custom = {"delay": 0.03, "cached_tokens": 2, "queue_time": 0.25}
    params = {"max_new_tokens": 5, "custom_params": custom}
    body = {"input_ids": [7, 8, 9], "sampling_params": params, "stream": True}
    with server.client.stream("POST", "/generate", json=body) as reply:
        assert reply.status_code == 200
        list(reply.iter_lines())
    # Tokens that come together: the first, then four with one gap.
    body["sampling_params"] = {"max_new_tokens": 5, "stream_interval": 4, "custom_params": {"delay": 0.03}}
    with server.client.stream("POST", "/generate", json=body) as reply:
        list(reply.iter_lines())
    # Only the prompt counts, of two answers.
    body = {"input_ids": [[7], [7, 8]], "sampling_params": {"max_new_tokens": 0}}
    assert server.client.post("/generate", json=body).status_code == 200
    after = scrape(server)
    grown = {name: after[name] - before[name] for name in after}
    assert {name: grown[name] for name in COUNTERS} == {
        "prompt_tokens_total": 3 + 3 + 1 + 2,
        "generation_tokens_total": 5 + 5,
        "cached_tokens_total": 2,
        "num_requests_total": 4,
        "num_aborted_requests_total": 0,
    }
    counts = {name: grown[f"{name}_count"] for name in HISTOGRAMS}
    assert counts == {
        "time_to_first_token_seconds": 2,
        "inter_token_latency_seconds": 4 + 4,
        "e2e_request_latency_seconds": 4,
        "queue_time_seconds": 4,
    }
    assert grown["queue_time_seconds_sum"] == 0.25
    assert grown["queue_time_seconds_bucket/0.2"] == 3 and grown["queue_time_seconds_bucket/0.3"] == 4
    first, between, whole = (
        grown[f"{name}_sum"]
        for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds")
    )
    assert first >= 2 * 0.03 and between >= 8 * 0.03 * 0.9 and first + between <= whole + 0.01


def test_requests_that_do_not_end_well(server):
    before = scrape(server)
    refused = {"text": "a", "sampling_params": {"custom_params": {"refuse": "the queue is full", "status": 503}}}
    assert server.client.post("/generate", json=refused).status_code == 503
    assert server.client.post("/generate", json={"text": "a", "sampling_params": {"n": 0}}).status_code == 400

    slow = {"max_new_tokens": 400, "ignore_eos": True, "custom_params": {"delay": 0.05}}
    thread = threading.Thread(
        target=lambda: server.client.post("/generate", json={"text": "a", "rid": "slow", "sampling_params": slow})
    )
    thread.start()
    wait_for(lambda: scrape(server)["num_running_reqs"] == 1)
    wait_for(lambda: scrape(server)["generation_tokens_total"] > before["generation_tokens_total"])
    running = scrape(server)
    assert running["utilization"] == 1 / 256 and running["num_queue_reqs"] == 0
    assert running["num_used_tokens"] >= 3
    assert running["token_usage"] == running["full_token_usage"] == running["num_used_tokens"] / 65536
    assert running["num_requests_total"] == before["num_requests_total"] + 1
    server.client.post("/abort_request", json={"rid": "slow"})
    thread.join(10)

    data = json.dumps({"text": "a", "rid": "leaver", "sampling_params": slow}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as s:
        s.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        wait_for(lambda: scrape(server)["num_running_reqs"] == 1)
    ended = "num_aborted_requests_total"
    wait_for(lambda: scrape(server)[ended] == before[ended] + 3)
    after = scrape(server)
    assert after["num_requests_total"] == before["num_requests_total"] + 3
    assert after["e2e_request_latency_seconds_count"] == before["e2e_request_latency_seconds_count"]
    assert "leaver" not in server.client.get("/metrics").text


def test_requests_may_stay_out_of_the_metrics(server):
    before = scrape(server)
    body = {"text": ["a", "b"], "sampling_params": {"max_new_tokens": 3}, "log_metrics": False}
    assert len(server.client.post("/generate", json=body).json()) == 2
    assert scrape(server) == before


def test_the_key_is_asked_for_and_servers_share_nothing(server, start):
    other = start("--enable-metrics", "--api-key", "k1", "--served-model-name", NAME)
    assert other.client.get("/metrics").status_code == 401
    assert other.client.get("/metrics", headers={"Authorization": "Bearer k2"}).status_code == 401
    body = {"text": "a", "sampling_params": {"max_new_tokens": 3}}
    for _ in range(3):
        assert server.client.post("/generate", json=body).status_code == 200
    assert scrape(server)["num_requests_total"] >= 3
    assert scrape(other, KEY, NAME)["num_requests_total"] == 0
    assert other.client.post("/generate", json=body, headers=KEY).status_code == 200
    assert scrape(other, KEY, NAME)["num_requests_total"] == 1


def test_an_engine_has_nowhere_to_show_them(folder):
    from sglang.srt.entrypoints.engine import Engine

    with pytest.raises(ValueError, match="enable_metrics"):
        Engine(model_path=folder, enable_metrics=True)


# ---- durations -----------------------------------------------------------------------------------------------------


def metrics(**info) -> ServerMetrics:
    fields = {
        "model_path": "m", "served_model_name": "m", "tokenizer_path": "m", "load_format": "auto",
        "preferred_sampling_params": None, "context_length": 128, "max_running_requests": 8, "max_queued_requests": 4,
        "max_req_input_len": 127, "max_total_num_tokens": 256, "vocab_size": 1000, "eos_token_ids": [1],
        "generation_config": {}, "architectures": [], "model_type": "",
    }  # fmt: skip
    return ServerMetrics(ServerInfo(**fields | info), 1.5)


def generation(observer: ServerMetrics, created: float) -> Generation:
    g = Generation(1, "r", "r", 0, 0, Prompt(SamplingParams()), [5, 6, 7], GenerationGroup(), observer)
    g.created = created
    return g


def test_a_histogram_counts_up_to_each_bound():
    histogram = Histogram((0.1, 0.2))
    histogram.observe(0.1)
    histogram.observe(0.15, 3)
    histogram.observe(7.0)
    histogram.observe(-5.0)  # the clock was set back
    assert histogram.buckets() == [("0.1", 2), ("0.2", 5), ("+Inf", 6)]
    assert histogram.sum == pytest.approx(0.1 + 3 * 0.15 + 7.0)


@pytest.mark.parametrize("bounds", [TOKEN_BOUNDS, WAIT_BOUNDS, REQUEST_BOUNDS])
def test_bounds_rise_and_are_few(bounds: tuple[float, ...]):
    assert list(bounds) == sorted(set(bounds)) and len(bounds) <= 30


def test_the_gap_is_spread_over_the_tokens_that_come_together():
    m = metrics()
    g = generation(m, 100.0)
    report = RequestReport(cached_tokens=2, queue_time=0.5)
    g.add(TextOutput(1, "", [1], report=report), 102.0)
    g.add(TextOutput(1, "", [1, 2, 3], report=report), 102.75)
    g.add(TextOutput(1, "", [], FinishReason("stop", matched="x")), 109.0)
    assert (m.first_token.sum, sum(m.first_token.counts)) == (2.0, 1)
    assert (m.inter_token.sum, m.inter_token.counts[TOKEN_BOUNDS.index(0.3)]) == (0.75, 3)
    assert (m.queue_time.sum, sum(m.queue_time.counts)) == (0.5, 1)
    assert (m.prompt_tokens, m.cached_tokens, m.generation_tokens, m.requests) == (3, 2, 4, 1)
    assert sum(m.e2e.counts) == 1 and m.aborted_requests == 0


def test_a_prompt_that_was_never_computed_does_not_count():
    m = metrics()
    generation(m, 100.0).add(TextOutput(1, "", [], FinishReason("abort", message="full", status_code=503)), 101.0)
    assert (m.requests, m.aborted_requests, m.prompt_tokens, sum(m.queue_time.counts)) == (1, 1, 0, 0)
    assert sum(m.e2e.counts) == 0


def test_two_in_one_process_share_nothing():
    a, b = metrics(), metrics(served_model_name="other")
    generation(a, 0.0).end(FinishReason("length"))
    h = Harness()
    assert read(a.text(state_of(h)).decode(), "m")["num_requests_total"] == 1
    assert read(b.text(state_of(h)).decode(), "other")["num_requests_total"] == 0


# ---- the scheduler's state -----------------------------------------------------------------------------------------


def state_of(h: Harness) -> dict:
    h.inbox.append(InternalStateReq("c"))
    h.step()
    return h.other.pop().state


def gauges(h: Harness, **info) -> dict[str, float]:
    return read(metrics(max_running_requests=len(h.kv.full_table) - 1, **info).text(state_of(h)).decode(), "m")


def test_gauges_of_requests_and_memory():
    """Four requests of 20 tokens, two of which find 16 cached; two can run at a time."""
    h = Harness(full_size=200, swa_size=100, rows=2, chunk=20, overlap=False)
    h.scheduler.stats.decode_log_interval = 1
    h.add("first", [*range(16), 1, 2, 3, 4], 4)
    h.run()
    idle = gauges(h)
    assert set(idle) >= GAUGES and not set(idle) & SPECULATION
    assert (idle["num_running_reqs"], idle["num_used_tokens"], idle["gen_throughput"]) == (0, 0, 0)
    assert (idle["max_total_num_tokens"], idle["max_total_num_tokens_swa"]) == (200, 100)
    assert idle["cache_hit_rate"] == 0
    for rid in ("b", "c", "d"):
        h.add(rid, [*range(16), *map(ord, rid * 4)], 30)
    for _ in range(4):
        h.step()
    held = sum(req.computed for req in h.scheduler.running) - 16  # 16 tokens are both requests'
    busy = gauges(h)
    assert (busy["num_running_reqs"], busy["num_queue_reqs"], busy["num_retracted_reqs"]) == (2, 1, 0)
    assert busy["utilization"] == 1
    assert state_of(h)["num_queue_tokens"] == 20
    assert busy["num_used_tokens"] == held == 2 * (20 + 3) - 16
    assert busy["full_token_usage"] == busy["num_used_tokens"] / 200
    assert 0 < busy["swa_token_usage"] < 1
    assert busy["token_usage"] == pytest.approx((held + busy["swa_token_usage"] * 100) / 300)  # a slot is a page here
    assert busy["cache_hit_rate"] == 32 / (20 + 40)
    assert busy["gen_throughput"] > 0
    h.run()


def test_the_host_tier_is_counted_where_there_is_one():
    names = {"hicache_host_used_tokens", "hicache_host_total_tokens", "load_back_tokens_total"}
    assert not names & set(gauges(Harness()))
    h = Harness(host_pages=100)
    for _ in range(2):
        h.add(f"r{_}", list(range(30)), 2)
        h.run()
        h.kv.cache.reset()
    values = gauges(h)
    assert [values[name] for name in sorted(names)] == [100, 31, 29]


def test_retracted_requests(monkeypatch):
    """They show while they wait, and that wait is none in the queue."""
    h = Harness(full_size=80, swa_size=80, rows=4, max_len=70, overlap=False, conservativeness=0.0)
    clock = itertools.count(1000.0)
    monkeypatch.setattr("sglang.srt.managers.scheduler.time.time", lambda: next(clock))
    for i in range(2):
        h.add(f"r{i}", [i] * 20, 40, created=1000.0)
    seen = set()
    while not h.scheduler.is_idle or h.inbox:
        values = gauges(h)
        seen.add((values["num_running_reqs"], values["num_retracted_reqs"]))
    assert (1, 1) in seen and (2, 0) in seen
    assert gauges(h)["num_retracted_reqs"] == 0
    finals = [h.received[f"r{i}"].finals[0] for i in range(2)]
    assert [final.report.num_retractions > 0 for final in finals] == [False, True]
    assert [final.report.queue_time for final in finals] == [0.0, 1.0]


def test_gauges_of_speculation():
    h = Harness(mixed=False, overlap=False, decode_tokens=4)
    h.scheduler.stats = SchedulerStats(num_draft_steps=3)
    fresh = gauges(h, speculative_num_steps=3)
    assert (fresh["spec_accept_length"], fresh["spec_accept_rate"]) == (1, 0)
    h.add("a", [5] * 10, 60)
    h.run()
    counts = h.received["a"].finals[0].report.verified_drafts
    length = 1 + sum(right * times for right, times in enumerate(counts)) / sum(counts)
    values = gauges(h, speculative_num_steps=3)
    assert math.isclose(values["spec_accept_length"], length) and length > 1
    assert math.isclose(values["spec_accept_rate"], (length - 1) / 3)


def test_the_wait_in_the_queue_ends_with_the_first_step(monkeypatch):
    """The second request waits for the first one's row."""
    h = Harness(rows=1, overlap=False)
    now = 1000.0
    monkeypatch.setattr("sglang.srt.managers.scheduler.time.time", lambda: now)
    h.add("a", [1, 2, 3], 4, created=999.0)
    h.add("b", [4, 5, 6], 4, created=999.5)
    h.step()
    now = 1010.0
    h.run()
    assert [h.received[rid].finals[0].report.queue_time for rid in "ab"] == [1.0, 10.5]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
