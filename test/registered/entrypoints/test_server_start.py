"""A server's start: what it tells, what it refuses, and what its flags change."""

import json
import os
import re
import socket
import sys

import pytest

from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import Asker, free_port, status, wait_for

register_cpu_ci(est_time=30, suite="base-a-test-cpu")


def fake(**settings) -> list[str]:
    return ["--json-model-override-args", json.dumps({"fake": settings})]


def test_ready_server_tells_a_curl_line_that_works(start, sockets_dir):
    server = start("--api-key", "s3cret key", fresh=True)
    output = server.output()
    assert "The server is fired up and ready to roll!" in output
    assert "s3cret" not in output
    (line,) = [line.strip() for line in output.splitlines() if line.strip().startswith("curl ")]
    reply = os.popen(line.replace("<your key>", "s3cret key")).read()
    assert json.loads(reply)["choices"][0]["message"]["role"] == "assistant"
    assert "401" in os.popen(line).read()
    assert server.stop() == 0
    assert os.listdir(sockets_dir) == []


def test_key_is_asked_for_everywhere_but_health(start):
    server = start("--api-key", "k1")
    for path in ("/v1/models", "/server_info", "/generate", "/flush_cache", "/nope"):
        for headers in ({}, {"Authorization": "Bearer k2"}, {"Authorization": "k1"}, {"Authorization": "Bearer k1 k1"}):
            reply = server.client.get(path, headers=headers)
            assert (reply.status_code, reply.json()["type"]) == (401, "AuthenticationError"), path
    assert server.client.get("/health").status_code == 200
    assert server.client.get("/health_generate").status_code == 200
    reply = server.client.get("/server_info", headers={"Authorization": "Bearer k1"})
    assert reply.status_code == 200
    assert "k1" not in reply.text
    assert "k1" not in server.output()


def test_503_while_starting(start):
    server = start(*fake(startup_delay=1.5), ready=False)
    wait_for(lambda: status(server, "/health") is not None, 10)
    assert status(server, "/health") == 503
    assert status(server, "/v1/models") == 503
    server.wait_ready()
    assert status(server, "/health") == 200


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (fake(startup_error="the model file is cut short"), "error: the model file is cut short"),
        (fake(startup_exit=7), "error: the scheduler process ended with exit code 7 while the server was starting"),
        (["--model-path", "/no/such/model"], "error: --model-path /no/such/model: no such folder"),
        (["--tokenizer-path", "/tmp"], "error: no tokenizer.json in /tmp"),
        (["--chat-template", "/no/template"], "error: --chat-template /no/template"),
        (["--host", "no.such.host.invalid"], "error: --host no.such.host.invalid"),
        (["--host", "192.0.2.1"], "error: cannot listen on 192.0.2.1"),
        (["--prot", "1"], "error: unknown flag --prot; did you mean --port?"),
    ],
)
def test_start_that_fails_says_why_in_one_line(start, sockets_dir, flags, message):
    server = start(*flags, ready=False)
    assert server.process.wait(20) == 2
    output = server.output()
    assert message in output
    assert "Traceback" not in output
    assert output.count("error: ") == 1
    assert os.listdir(sockets_dir) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "error: model path .* has no config.json"),
        ({"architectures": ["MambaForCausalLM"]}, "error: architecture MambaForCausalLM is not supported; supported: "),
        ("", "error: .*config.json is not valid JSON"),
    ],
)
def test_a_folder_that_is_no_models_is_not_blamed_on_its_tokenizer(start, tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_text(config and json.dumps(config))
    server = start("--model-path", str(tmp_path), ready=False)
    assert server.process.wait(20) == 2
    assert re.search(message, server.output()), server.output()
    assert server.output().count("error: ") == 1


def test_port_in_use_is_found_before_the_model_loads(start):
    with socket.create_server(("127.0.0.1", free_port())) as other:
        port = other.getsockname()[1]
        server = start(*fake(startup_error="the model was loaded"), ready=False, port=port, fresh=True)
        assert server.process.wait(20) == 2
    assert server.output().strip() == (
        f"error: cannot listen on 127.0.0.1:{port}: Address already in use; choose another --host or --port"
    )


def test_without_warm_up_the_scheduler_sees_no_request(start):
    assert start("--skip-server-warmup").internal_state()["received"] == []
    assert len(start().internal_state()["received"]) == 1


def test_ids_only_server(start):
    server = start("--skip-tokenizer-init")
    ids = {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 4}}
    answer = server.client.post("/generate", json=ids).json()
    assert (answer["text"], answer["output_ids"]) == ("", [5, 6, 7, 5])
    for path, body in (
        ("/generate", {"text": "a"}),
        ("/generate", {**ids, "sampling_params": {"stop": "x"}}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/tokenize", {"prompt": "a"}),
    ):
        reply = server.client.post(path, json=body)
        assert (reply.status_code, "skip-tokenizer-init" in reply.json()["message"]) == (400, True), path
    curl = [line for line in server.output().splitlines() if "curl" in line][0]
    assert "output_ids" in os.popen(curl).read()


# ---- limits that flags set ----------------------------------------------------------------------------------------


def test_full_queue_is_503(start):
    server = start("--max-running-requests", "2", "--max-queued-requests", "1")
    asker = Asker(server, sampling_params={"max_new_tokens": 400, "custom_params": {"delay": 0.05}, "n": 3})
    reply = server.client.post("/generate", json={"text": "a"})
    assert reply.status_code == 503
    assert "holds 3 requests and takes at most 3" in reply.json()["message"]
    server.client.post("/abort_request", json={"abort_all": True})
    asker.join()
    assert (
        server.client.post("/generate", json={"text": "a", "sampling_params": {"max_new_tokens": 1}}).status_code == 200
    )


def test_truncation_and_incremental_stream_and_interval(start):
    flags = [
        "--context-length",
        "64",
        "--allow-auto-truncate",
        "--incremental-streaming-output",
        "--stream-interval",
        "5",
    ]
    server = start(*flags)
    ids = list(range(100, 300))
    body = {
        "input_ids": ids,
        "sampling_params": {"max_new_tokens": 14, "custom_params": {"delay": 0.01}},
        "stream": True,
    }
    lines = server.client.post("/generate", json=body).text.split("\n\n")
    pieces = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert pieces[0]["meta_info"]["prompt_tokens"] == 64 - 14
    assert [len(p["output_ids"]) for p in pieces] == [1, 5, 5, 3]
    assert sum((p["output_ids"] for p in pieces), []) == ids[:14]
    body["sampling_params"]["max_new_tokens"] = 1000  # leaves half of the context to the prompt
    last = server.client.post("/generate", json={**body, "stream": False}).json()["meta_info"]
    assert (last["prompt_tokens"], last["completion_tokens"]) == (32, 32)


def test_request_log_levels(start):
    body = {"text": "the prompt text", "rid": "rid-7", "sampling_params": {"max_new_tokens": 3, "temperature": 0.25}}
    for level, shown in ((0, ["rid-7"]), (1, ["rid-7", "0.25"]), (2, ["rid-7", "0.25", "the prompt text"])):
        server = start("--log-requests", "--log-requests-level", str(level), "--api-key", "hidden")
        server.client.post("/generate", json=body, headers={"Authorization": "Bearer hidden"})
        assert server.stop() == 0
        output = server.output()
        for text in ("rid-7", "0.25", "the prompt text"):
            assert (text in output) == (text in shown), (level, text)
        assert "hidden" not in output
    quiet = start()
    quiet.client.post("/generate", json=body)
    assert "rid-7" not in quiet.output()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
