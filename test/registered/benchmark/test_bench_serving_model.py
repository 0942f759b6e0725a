"""Loads against the shipped model's own server: every endpoint counts the same tokens, agents find their histories."""

import json
import re
import sys
from pathlib import Path

import pytest

from sglang.bench_serving import main
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import ServerProcess

register_cpu_ci(est_time=20, suite="base-b-test-cpu")

LENGTHS = ("--random-input-len", "48", "--random-output-len", "8", "--random-range-ratio", "1")


@pytest.fixture(scope="module")
def server():
    flags = "--log-level", "warning", "--api-key", "hush", "--enable-cache-report", "--enable-hierarchical-cache"
    with ServerProcess("sglang.launch_server", *flags) as running:
        yield running


@pytest.fixture
def bench(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "hush")

    def bench(*flags: str) -> dict:
        file = tmp_path / "out.jsonl"
        assert main(["--port", str(server.port), "--output-file", str(file), "--num-prompts", "6", *flags]) == 0
        assert "hush" not in file.read_text()
        return json.loads(file.read_text().splitlines()[-1])

    return bench


@pytest.mark.parametrize("backend", ["sglang", "sglang-oai", "sglang-oai-chat"])
def test_random_ids(bench, backend):
    ids = [] if backend.endswith("chat") else ["--tokenize-prompt"]
    flags = ("--backend", backend, "--dataset-name", "random-ids", *LENGTHS, *ids, "--request-rate", "50")
    record = bench(*flags, "--max-concurrency", "3", "--flush-cache", "--return-logprob", "--output-details")
    assert (record["completed"], record["failed"], record["total_output_tokens"]) == (6, 0, 48)
    assert record["total_input_tokens"] == 6 * 48 if ids else record["total_input_tokens"] > 6 * 48  # the template's
    assert record["output_lens"] == [8] * 6 and all(len(itls) < 8 for itls in record["itls"])
    assert 0 < record["mean_ttft_ms"] <= record["mean_e2e_latency_ms"] and record["mean_tpot_ms"] > 0
    assert record["max_concurrent_requests"] <= 3
    assert record["server_info"]["context_length"] == 4096 and record["accept_length"] is None


def test_the_same_text_however_it_is_asked_for(bench):
    """Greedy answers to one prompt set over both endpoints, with and without a stream."""
    flags = ("--dataset-name", "gsm8k", "--gsm8k-num-shots", "1", "--gsm8k-output-len", "12", "--disable-ignore-eos")
    texts = [
        bench(*flags, *more, "--output-details", "--max-concurrency", "1")["generated_texts"]
        for more in ([], ["--backend", "sglang-oai"], ["--disable-stream"], ["--tokenize-prompt"])
    ]
    assert all(texts[0]) and texts[1:] == texts[:1] * 3


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "benchmark/gemma4")
    monkeypatch.setenv("OPENAI_API_KEY", "hush")


def test_agents_find_their_histories(server, scripts, capsys):
    import agents

    flags = ["--url", server.url, "--agents", "3", "--history", "200", "--new", "5", "--turns", "2", "--output", "2"]
    assert agents.main([*flags, "--vocab", "2048"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "turn 1: first token after" in first and first.endswith("history cached 0 of 3, 0 tokens from the host")
    assert second.endswith("history cached 3 of 3, 0 tokens from the host")
    assert agents.main([*flags, "--vocab", "262144"]) == 1  # ids that the model does not have
    assert "HTTP 400" in capsys.readouterr().err


def test_long_contexts_at_once(server, scripts, capsys):
    import long_context

    flags = ["--url", server.url, "--requests", "4", "--output-len", "12", "--vocab", "2048"]
    assert long_context.main([*flags, "--input-len", "600"]) == 0
    out = capsys.readouterr().out
    assert "4 requests of 600 tokens" in out and "0 failed, 0 retractions" in out
    assert re.search(r"at most at once: \d running, \d+ full tokens of \d+, \d+ sliding of \d+", out)
    assert long_context.main([*flags, "--input-len", "5000"]) == 1
    assert "failed: HTTP 400" in capsys.readouterr().err


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
