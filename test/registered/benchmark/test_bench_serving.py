"""bench_serving against a server without a model: every backend, what is sent and counted, and all ways to fail."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sglang.bench_serving import main, parse_args
from sglang.benchmark.serving import headers
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import free_port, wait_for
from sglang.test.sse_server import SseServer
from sglang.test.tiny_tokenizer import make_model_folder

register_cpu_ci(est_time=15, suite="base-a-test-cpu")

BACKENDS = ("sglang", "sglang-native", "sglang-oai", "sglang-oai-chat", "vllm", "vllm-chat")
RANDOM = ("--dataset-name", "random-ids", "--random-range-ratio", "1")
LENGTHS = ("--random-input-len", "20", "--random-output-len", "7")
FIELDS = {
    "tag", "backend", "dataset_name", "request_rate", "max_concurrency", "sharegpt_output_len", "random_input_len",
    "random_output_len", "random_range_ratio", "server_info", "duration", "completed", "total_input_tokens",
    "total_input_text_tokens", "total_input_vision_tokens", "total_output_tokens", "total_output_tokens_retokenized",
    "request_throughput", "input_throughput", "output_throughput", "total_throughput", "concurrency", "accept_length",
    "max_output_tokens_per_s", "max_concurrent_requests",
    *(f"{kind}_{figure}_ms" for kind in ("mean", "median", "std", "p90", "p95", "p99")
      for figure in ("e2e_latency", "ttft", "tpot", "itl")),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return make_model_folder(tmp_path_factory.mktemp("m"))


@pytest.fixture
def server(folder):
    with SseServer(tokenizer_path=folder) as running:
        yield running


class Bench:
    """Runs the command in this process; `records` are the lines of its output file."""

    def __init__(self, file):
        self.file = file

    def __call__(self, server: SseServer | str, *flags: str) -> int:
        url = server if isinstance(server, str) else server.url
        return main(["--base-url", url, "--output-file", str(self.file), "--num-prompts", "5", *flags])

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path / "out.jsonl")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chunk_tokens", [1, 3])
def test_counts_of_every_backend(server, bench, folder, capsys, backend, chunk_tokens):
    server.chunk_tokens = chunk_tokens
    assert bench(server, "--backend", backend, *RANDOM, *LENGTHS, "--tokenizer", folder, "--output-details") == 0
    (record,) = bench.records
    assert record.keys() >= FIELDS
    assert (record["completed"], record["failed"], record["not_sent"], record["interrupted"]) == (5, 0, 0, None)
    assert record["total_input_tokens"] == 5 * 20 and record["total_output_tokens"] == 5 * 7
    assert record["total_output_tokens_retokenized"] == 5 * 7
    assert record["input_lens"] == [20] * 5 and record["output_lens"] == [7] * 5
    assert record["generated_texts"] == ["x" * 7] * 5 and record["errors"] == [""] * 5
    assert [len(itls) for itls in record["itls"]] == [7 - chunk_tokens] * 5
    assert all(ttft > 0 for ttft in record["ttfts"])
    assert record["request_rate"] == "inf" and record["max_concurrency"] is None
    out = capsys.readouterr().out
    assert "= Serving Benchmark Result =" in out
    assert f"{'Total generated tokens:':<40} 35" in out and f"{'Successful requests:':<40} 5" in out


def body_of(server: SseServer, bench: Bench, *flags: str) -> dict:
    """The body of a run's first measured request."""
    assert bench(server, *RANDOM, *LENGTHS, "--warmup-requests", "0", *flags) == 0
    return server.requests[-5][1]


def test_body_of_generate(server, bench):
    body = body_of(
        server, bench, "--tokenize-prompt", "--temperature", "0.5", "--top-p", "0.9", "--return-logprob",
        "--extra-request-body", '{"sampling_params": {"top_k": 4}, "extra_key": "k"}',
    )  # fmt: skip
    assert len(body.pop("input_ids")) == 20
    assert body == {
        "sampling_params": {"max_new_tokens": 7, "temperature": 0.5, "top_p": 0.9, "ignore_eos": True, "top_k": 4},
        "stream": True,
        "return_logprob": True,
        "extra_key": "k",
    }


def test_body_of_completions(server, bench):
    body = body_of(server, bench, "--backend", "sglang-oai", "--tokenize-prompt", "--return-logprob", "--model", "m")
    assert len(body["prompt"]) == 20 and type(body["prompt"][0]) is int
    assert body["model"] == "m" and body["max_tokens"] == 7 and body["ignore_eos"] and body["logprobs"] == 1
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


def test_body_of_chat(server, bench, folder):
    body = body_of(
        server, bench, "--backend", "vllm-chat", "--tokenizer", folder, "--disable-ignore-eos", "--return-logprob"
    )
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert body["model"] == "fake" and body["max_completion_tokens"] == 7
    assert body["ignore_eos"] is False and body["logprobs"] is True


def test_log_probabilities_that_are_asked_for(server, bench, folder):
    flags = ("--return-logprob", "--top-logprobs-num", "3")
    own = ("--token-ids-logprob", "4", "5", "--logprob-start-len", "0")
    body = body_of(server, bench, "--tokenize-prompt", *flags, *own)
    assert (body["top_logprobs_num"], body["token_ids_logprob"], body["logprob_start_len"]) == (3, [4, 5], 0)
    assert body_of(server, bench, "--backend", "sglang-oai", "--tokenize-prompt", *flags)["logprobs"] == 3
    body = body_of(server, bench, "--backend", "sglang-oai-chat", "--tokenizer", folder, *flags)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 3)


def test_chats_of_a_file(server, bench, folder, tmp_path):
    """Each request is as its line says, but for what the run decides."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the apples"}]
    line = {"model": "other", "messages": messages, "max_tokens": 7, "tools": [{"type": "function"}], "temperature": 1,
            "stream": False}  # fmt: skip
    path = tmp_path / "chats.jsonl"
    path.write_text((json.dumps(line) + "\n") * 5)
    flags = ("--backend", "sglang-oai-chat", "--dataset-name", "openai", "--dataset-path", str(path))
    assert bench(server, *flags, "--tokenizer", folder, "--served-model-name", "m") == 0
    body = server.requests[-1][1]
    assert body["messages"] == messages and body["tools"] == line["tools"] and body["temperature"] == 1
    assert (body["model"], body["max_completion_tokens"], body["stream"]) == ("m", 7, True) and "max_tokens" not in body


@pytest.mark.parametrize("backend", BACKENDS)
def test_cache_report(server, bench, folder, capsys, backend):
    flags = ("--backend", backend, *RANDOM, *LENGTHS, "--tokenizer", folder, "--cache-report", "--output-details")
    assert bench(server, *flags) == 0
    nothing = {"total_prompt_tokens": 100, "total_cached_tokens": None, "cache_hit_rate_pct": None}
    assert bench.records[-1]["cache_report"] == nothing
    assert f"{'Total cached tokens:':<40} n/a" in capsys.readouterr().out
    server.cached_tokens = 15
    assert bench(server, *flags) == 0
    record = bench.records[-1]
    assert record["cache_report"] == {
        "total_prompt_tokens": 100, "total_cached_tokens": 75, "cache_hit_rate_pct": 75.0,
    }  # fmt: skip
    assert record["cached_tokens"] == [15] * 5
    assert f"{'Cache hit rate (%):':<40} 75.00" in capsys.readouterr().out


def test_requests_are_printed_as_they_end(server, bench, capsys):
    server.faults = {2: "refuse"}
    flags = (*RANDOM, *LENGTHS, "--tokenize-prompt", "--print-requests", "--max-concurrency", "1", "--allow-failures")
    assert bench(server, *flags) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert len(lines) == 5 and [bool(line["error"]) for line in lines] == [False, True, False, False, False]
    assert len(lines[0]["prompt"]) == lines[0]["prompt_len"] == 20 and lines[0]["output_len"] == 7
    assert lines[0]["text"] == "x" * 7 and 0 < lines[0]["ttft"] <= lines[0]["latency"]


def test_prompts_of_a_group_share_a_routing_key(server, bench):
    gsp = ("--dataset-name", "generated-shared-prefix", "--gsp-num-groups", "2", "--gsp-prompts-per-group", "3",
           "--gsp-system-prompt-len", "8", "--gsp-question-len", "4", "--gsp-output-len", "3")  # fmt: skip
    flags = ("--num-prompts", "6", *gsp, "--tokenize-prompt", "--gsp-send-routing-key", "--warmup-requests", "0")
    assert bench(server, *flags) == 0
    heads: dict[str, set] = {}
    for _, body, sent in server.requests:
        heads.setdefault(sent["X-SMG-Routing-Key"], set()).add(tuple(body["input_ids"][:8]))
    assert set(heads) == {"42_0", "42_1"} and all(len(found) == 1 for found in heads.values())


@pytest.mark.parametrize("backend", ("sglang", "sglang-oai", "sglang-oai-chat"))
def test_without_stream(server, bench, capsys, backend):
    assert bench(server, "--backend", backend, *RANDOM, *LENGTHS, "--disable-stream", "--output-details") == 0
    (record,) = bench.records
    assert not any("stream_options" in body or body["stream"] for _, body, _ in server.requests)
    assert record["total_output_tokens"] == 35 and record["generated_texts"] == ["x" * 7] * 5
    assert record["mean_ttft_ms"] is None and record["p99_tpot_ms"] is None and record["mean_e2e_latency_ms"] > 0
    assert f"{'Mean TTFT (ms):':<40} n/a" in capsys.readouterr().out


def test_incremental_texts_are_joined(folder, bench):
    with SseServer(tokenizer_path=folder, incremental_streaming_output=True) as server:
        server.incremental = True
        assert bench(server, *RANDOM, *LENGTHS, "--output-details") == 0
    assert bench.records[0]["generated_texts"] == ["x" * 7] * 5


@pytest.mark.parametrize("usage,noted", [("final", False), ("none", True)])
def test_less_usage_than_asked_for(server, bench, capsys, usage, noted):
    """Each chunk with text is then one entry of ITL; the sum is exact if the end tells it, and noted if not."""
    server.usage, server.chunk_tokens = usage, 2
    assert bench(server, "--backend", "sglang-oai", *RANDOM, *LENGTHS, "--output-details") == 0
    (record,) = bench.records
    assert [len(itls) for itls in record["itls"]] == [3] * 5  # 2 + 2 + 2 + 1 tokens
    assert record["output_lens"] == [4 if noted else 7] * 5
    assert ("5 answers came without usage" in capsys.readouterr().out) == noted


FAULTS = {
    "refuse": "HTTP 500: no room",
    "error": "out of luck",
    "abort": "aborted",
    "cut": "payload",
    "silent": "broke off",
    "garbage": "can't be read",
    "empty": "no token",
}


@pytest.mark.parametrize("backend", ("sglang", "sglang-oai", "sglang-oai-chat"))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_answer_counts(server, bench, capsys, backend, fault):
    server.faults = {2: fault}
    flags = ("--backend", backend, *RANDOM, *LENGTHS, "--warmup-requests", "0", "--output-details")
    assert bench(server, *flags) == 1
    (record,) = bench.records
    assert (record["completed"], record["failed"], record["not_sent"]) == (4, 1, 0)
    assert record["total_output_tokens"] == 4 * 7 and record["interrupted"] is None
    (message,) = record["error_counts"]
    assert FAULTS[fault] in message and sorted(record["errors"]) == ["", "", "", "", message]
    printed = capsys.readouterr()
    assert f"{'Failed requests:':<40} 1" in printed.out
    assert "of 5 requests 1 failed and 0 were not sent" in printed.err and f"1 x {message}" in printed.err


def test_allow_failures(server, bench):
    flags = (*RANDOM, *LENGTHS, "--warmup-requests", "0", "--allow-failures")
    server.faults = {2: "refuse"}
    assert bench(server, *flags) == 0
    server.faults = {5 + i: "refuse" for i in range(5)}
    assert bench(server, *flags) == 1  # nothing was measured
    assert [record["failed"] for record in bench.records] == [1, 5]


def test_many_messages_are_shortened(server, bench, capsys):
    server.faults = dict(enumerate(["refuse", "error", "silent", "garbage", "refuse"]))
    assert bench(server, *RANDOM, *LENGTHS, "--warmup-requests", "0") == 1
    err = capsys.readouterr().err
    assert "2 x HTTP 500: no room" in err and "and 1 other messages" in err
    assert sum(bench.records[0]["error_counts"].values()) == 5


def test_a_server_that_dies(server, bench, capsys):
    """Two answers are complete, the third dies with the server, the others are not even tried."""
    server.faults = {2: "die"}
    flags = (*RANDOM, *LENGTHS, "--warmup-requests", "0", "--max-concurrency", "1", "--allow-failures")
    assert bench(server, *flags) == 1
    (record,) = bench.records
    assert (record["completed"], record["failed"], record["not_sent"]) == (2, 1, 2)
    assert record["interrupted"] == f"the server at {server.url} is gone"
    assert record["total_output_tokens"] == 14 and record["server_info"]["vocab_size"] == 300
    assert capsys.readouterr().err.startswith("error: the run ended early: the server at")


def signal_when(condition, number: int = signal.SIGINT) -> threading.Thread:
    """Sends this process a signal as soon as the condition holds."""
    thread = threading.Thread(target=lambda: (wait_for(condition), os.kill(os.getpid(), number)))
    thread.start()
    return thread


@pytest.mark.parametrize("number,reason", [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_saves_what_there_is(server, bench, number, reason):
    server.faults = {2: "hang"}
    sender = signal_when(lambda: len(server.requests) == 3, number)
    assert bench(server, *RANDOM, *LENGTHS, "--warmup-requests", "0", "--max-concurrency", "1") == 130
    sender.join()
    (record,) = bench.records
    assert (record["completed"], record["failed"], record["not_sent"]) == (2, 1, 2)
    assert record["interrupted"] == reason and record["error_counts"] == {"cut off when the run was stopped": 1}
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


def test_a_signal_before_the_run(server, bench, capsys):
    server.faults = {0: "hang"}
    sender = signal_when(lambda: len(server.requests) == 1)
    assert bench(server, *RANDOM, *LENGTHS) == 130
    sender.join()
    assert "interrupted" in capsys.readouterr().err and not bench.file.exists()


def test_a_signal_after_the_run(server, bench, capsys):
    """While a profile is written nothing is left to stop, but much to save."""
    server.hanging.add("/stop_profile")
    sender = signal_when(lambda: len(server.orders) == 2)
    assert bench(server, *RANDOM, *LENGTHS, "--profile") == 1
    sender.join()
    assert bench.records[0]["completed"] == 5 and "error: interrupted while" in capsys.readouterr().err


def test_no_server(bench, capsys):
    url = f"http://127.0.0.1:{free_port()}"
    assert bench(url, *RANDOM, "--ready-check-timeout-sec", "0.1") == 1
    assert f"no server is ready at {url} after 0.1 s: {url}/health: cannot connect to" in capsys.readouterr().err
    assert not bench.file.exists()


def test_waits_for_the_server(server, bench):
    server.missing.add("/health")
    threading.Timer(0.3, server.missing.clear).start()
    assert bench(server, *RANDOM, *LENGTHS, "--ready-check-timeout-sec", "10") == 0


def test_host_and_port(server, bench):
    port = server.url.rpartition(":")[2]
    assert main(["--port", port, "--output-file", str(bench.file), "--num-prompts", "2", *RANDOM, *LENGTHS]) == 0
    assert bench.records[0]["completed"] == 2


def test_warm_up_and_flush(server, bench):
    assert bench(server, *RANDOM, "--random-output-len", "50", "--warmup-requests", "2", "--flush-cache") == 0
    lengths = [body["sampling_params"]["max_new_tokens"] for _, body, _ in server.requests]
    assert lengths == [32, 32, *[50] * 5] and bench.records[0]["completed"] == 5
    assert [path for path, _ in server.orders] == ["/flush_cache"]


def test_a_warm_up_that_fails(server, bench, capsys):
    server.faults = {0: "refuse"}
    assert bench(server, *RANDOM, *LENGTHS) == 1
    assert "1 of 1 warm-up requests failed: HTTP 500: no room" in capsys.readouterr().err
    assert len(server.requests) == 1 and not bench.file.exists()


def test_profile(server, bench):
    assert bench(server, *RANDOM, *LENGTHS, "--profile") == 0
    assert server.orders == [("/start_profile", {}), ("/stop_profile", {})]
    flags = (
        "--profile-num-steps",
        "4",
        "--profile-by-stage",
        "--profile-activities",
        "CPU",
        "--profile-output-dir",
        "/t",
    )
    server.orders.clear()
    flags = (*flags, "--profile-start-step", "9", "--profile-prefix", "p")
    assert bench(server, *RANDOM, *LENGTHS, "--profile", *flags, "--profile-output-dir", "/t") == 0
    body = {"num_steps": 4, "profile_by_stage": True, "activities": ["CPU"], "output_dir": "/t"}
    body |= {"start_step": 9, "profile_prefix": "p"}
    assert server.orders == [("/start_profile", body), ("/stop_profile", {})]


def test_profile_that_is_refused(server, bench, capsys):
    server.missing.add("/start_profile")
    assert bench(server, *RANDOM, *LENGTHS, "--profile") == 1
    assert "/start_profile answers 404: no /start_profile here" in capsys.readouterr().err
    server.missing = {"/stop_profile"}
    assert bench(server, *RANDOM, *LENGTHS, "--profile") == 1  # but what was measured is saved
    assert bench.records[-1]["completed"] == 5


def test_server_info_is_stored_without_secrets(folder, bench, capsys):
    states = [{"avg_spec_accept_length": 3.25, "hf_token": "hush"}]
    with SseServer(
        tokenizer_path=folder, admin_api_key="hush", max_total_num_tokens=9, internal_states=states
    ) as server:
        assert bench(server, *RANDOM, *LENGTHS, "--header", "X-Secret=hush") == 0
    (record,) = bench.records
    assert record["server_info"]["max_total_num_tokens"] == 9 and "hush" not in bench.file.read_text()
    assert record["accept_length"] == 3.25
    assert f"{'Accept length:':<40} 3.25" in capsys.readouterr().out


def test_a_server_that_tells_nothing(server, bench, folder):
    server.missing |= {"/server_info", "/get_server_info", "/model_info", "/v1/models"}
    assert bench(server, *RANDOM, *LENGTHS, "--tokenizer", folder, "--model", "m") == 0
    assert bench.records[0]["server_info"] is None


def test_headers(server, bench, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "from the environment")
    assert bench(server, *RANDOM, *LENGTHS, "--header", "X-A=1", "X-B=a=b") == 0
    sent = server.requests[-1][2]
    assert (sent["X-A"], sent["X-B"], sent["Authorization"]) == ("1", "a=b", "Bearer from the environment")
    args = parse_args(["--header", "authorization=Bearer typed", "--output-file", str(bench.file)])
    assert headers(args) == {"Content-Type": "application/json", "authorization": "Bearer typed"}


def test_max_concurrency_and_rate(server, bench):
    assert bench(server, *RANDOM, *LENGTHS, "--max-concurrency", "2", "--request-rate", "500", "--tag", "t") == 0
    (record,) = bench.records
    assert 1 <= record["max_concurrent_requests"] <= 2
    assert (record["max_concurrency"], record["request_rate"], record["tag"]) == (2, 500.0, "t")


def test_goodput(server, bench, capsys):
    assert bench(server, *RANDOM, *LENGTHS, "--goodput", "e2el:60000", "ttft:60000", "tpot:60000") == 0
    assert bench(server, *RANDOM, *LENGTHS, "--goodput", "e2el:0.000001") == 0
    all_good, none_good = bench.records
    assert all_good["request_goodput"] == all_good["request_throughput"] and none_good["request_goodput"] == 0
    assert "Request goodput (req/s):" in capsys.readouterr().out


def test_chart(server, bench):
    assert bench(server, *RANDOM, *LENGTHS, "--plot-throughput") == 0
    assert bench.file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_chart_of_nothing(server, bench):
    server.faults = {i: "refuse" for i in range(5)}
    assert bench(server, *RANDOM, *LENGTHS, "--plot-throughput", "--warmup-requests", "0") == 1
    assert bench.file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_default_file_is_appended_to(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--base-url", server.url, "--num-prompts", "2", *RANDOM, *LENGTHS, "--disable-tqdm"]
    assert main(flags) == main(flags) == 0
    (file,) = tmp_path.glob("*.jsonl")
    assert file.name == f"sglang_{time.strftime('%m%d')}_2_20_7.jsonl"
    assert len(file.read_text().splitlines()) == 2


def test_a_file_without_its_last_line_end(server, bench):
    bench.file.write_text('{"cut": 1}')
    assert bench(server, *RANDOM, *LENGTHS) == 0
    assert [record.get("completed") for record in bench.records] == [None, 5]


def test_a_disk_that_fills_up(server, bench, capsys, monkeypatch):
    def full(record, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sglang.benchmark.serving.save_record", full)
    assert bench(server, *RANDOM, *LENGTHS) == 1
    printed = capsys.readouterr()
    assert "No space left on device" in printed.err
    (line,) = [line for line in printed.out.splitlines() if line.startswith("{")]
    assert json.loads(line)["completed"] == 5


def test_lengths_beyond_the_server(folder, bench, capsys):
    with SseServer(tokenizer_path=folder, context_length=26, max_req_input_len=25) as server:
        assert bench(server, *RANDOM, *LENGTHS) == 2
        assert "prompt 0 has 20 tokens and asks for 7 more; the server's context holds 26" in capsys.readouterr().err
        server.server_info |= {"context_length": None, "max_req_input_len": 19}
        assert bench(server, *RANDOM, *LENGTHS) == 2
        assert "the server takes prompts of up to 19" in capsys.readouterr().err
        assert bench(server, *RANDOM, "--random-input-len", "4090", "--random-output-len", "7") == 2  # /v1/models: 4096
    assert not server.requests


def test_a_dataset_that_is_not_usable(server, bench, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"question": 1}')
    for flags, message in {
        ("gsm8k", "--dataset-path", str(tmp_path / "bad.jsonl")): "bad.jsonl, line 1: ",
        ("random",): "give it with --dataset-path (nothing is downloaded)",
        ("gsm8k", "--tokenizer", str(tmp_path)): "no tokenizer.json in",
    }.items():
        assert bench(server, "--dataset-name", *flags) == 2
        assert message in capsys.readouterr().err
    assert not server.requests and not bench.file.exists()


def test_same_seed_same_requests(server, bench):
    flags = ("--dataset-name", "random-ids", "--tokenize-prompt", *LENGTHS, "--max-concurrency", "1")
    for seed in ("1", "1", "2"):
        assert bench(server, *flags, "--seed", seed, "--warmup-requests", "0") == 0
    bodies = [body for _, body, _ in server.requests]
    assert bodies[:5] == bodies[5:10] != bodies[10:]


@pytest.mark.parametrize("backend,step_ms", [("sglang", "0"), ("sglang-oai", "2"), ("sglang-oai-chat", "0")])
def test_client_benchmark(backend, step_ms):
    script = Path(__file__).parents[3] / "benchmark" / "serving" / "bench_client.py"
    flags = ("--connections", "2", "--tokens", "20", "--requests", "4", "--step-ms", step_ms, "--backend", backend)
    shown = subprocess.check_output([sys.executable, script, *flags], text=True)
    assert shown.startswith(f"{backend}, 2 connections: ") and "80 of 80 in" in shown


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
