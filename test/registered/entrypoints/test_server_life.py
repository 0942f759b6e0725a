"""A server's life: start, refusal to start, keys, signals, and the death of any of its processes."""

import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time

import httpx
import psutil
import pytest
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import ServerProcess, free_port
from sglang.test.tiny_tokenizer import make_model_folder

register_cpu_ci(est_time=30, suite="base-a-test-cpu")

FAKE_SERVER = "sglang.test.fake_server"
SLOW = {"max_new_tokens": 400, "custom_params": {"delay": 0.05}}  # 20 s


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return make_model_folder(tmp_path_factory.mktemp("m"))


@pytest.fixture
def sockets_dir(monkeypatch, tmp_path):
    """Where this test's servers put their sockets; empty again once they have ended."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setenv("TMPDIR", short)
        yield short


@pytest.fixture
def start(folder, sockets_dir):
    servers = []

    def start(*flags: str, ready: bool = True, **kwargs) -> ServerProcess:
        server = ServerProcess(FAKE_SERVER, "--model-path", folder, *flags, **kwargs)
        servers.append(server)
        if ready:
            server.wait_ready()
        return server

    yield start
    for server in servers:
        server.stop(signal.SIGKILL)


def fake(**settings) -> list[str]:
    return ["--json-model-override-args", json.dumps({"fake": settings})]


def gone(pids) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


def wait_for(condition, seconds: float = 5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class Asker(threading.Thread):
    """A client in a thread; `reply` is its response, `error` what went wrong on the wire."""

    def __init__(self, server: ServerProcess, **body):
        super().__init__()
        self.server, self.body = server, body
        self.reply: httpx.Response | None = None
        self.error: Exception | None = None
        self.start()
        wait_for(lambda: server.internal_state()["running"])

    def run(self) -> None:
        try:
            self.reply = httpx.post(f"{self.server.url}/generate", json={"text": "abc", **self.body}, timeout=30)
        except httpx.TransportError as e:
            self.error = e


# ---- start --------------------------------------------------------------------------------------------------------


def test_ready_server_tells_a_curl_line_that_works(start, sockets_dir):
    server = start("--api-key", "s3cret key")
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
    wait_for(lambda: _status(server, "/health") is not None, 10)
    assert _status(server, "/health") == 503
    assert _status(server, "/v1/models") == 503
    server.wait_ready()
    assert _status(server, "/health") == 200


def _status(server: ServerProcess, path: str) -> int | None:
    try:
        return server.client.get(path).status_code
    except httpx.TransportError:
        return None


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


def test_port_in_use_is_found_before_the_model_loads(start):
    with socket.create_server(("127.0.0.1", free_port())) as other:
        port = other.getsockname()[1]
        server = start(*fake(startup_error="the model was loaded"), ready=False, port=port)
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
    asker = Asker(server, sampling_params={**SLOW, "n": 3})
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


# ---- the end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_requests_finish(start, sockets_dir, number):
    server = start()
    pids = server.children().values()
    assert len(pids) == 2
    asker = Asker(server, sampling_params={"max_new_tokens": 20, "custom_params": {"delay": 0.05}})
    server.process.send_signal(number)
    wait_for(lambda: _status(server, "/v1/models") != 200)
    assert _status(server, "/health") in (503, None)
    assert server.process.wait(10) == 0
    asker.join()
    assert asker.reply.json()["meta_info"]["completion_tokens"] == 20
    assert gone(pids)
    assert os.listdir(sockets_dir) == []


def test_signal_aborts_what_takes_too_long(start, sockets_dir):
    server = start()
    pids = server.children().values()
    asker = Asker(server, sampling_params=SLOW)
    started = time.monotonic()
    assert server.stop(signal.SIGTERM, timeout=10) == 0
    assert time.monotonic() - started < 10
    asker.join()
    reason = asker.reply.json()["meta_info"]["finish_reason"]
    assert (reason["type"], reason["message"]) == ("abort", "the server is shutting down")
    assert gone(pids)
    assert os.listdir(sockets_dir) == []


def test_second_signal_ends_at_once(start):
    server = start()
    pids = server.children().values()
    asker = Asker(server, sampling_params=SLOW)
    server.process.send_signal(signal.SIGINT)
    wait_for(lambda: _status(server, "/v1/models") != 200)
    started = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(10) == 1
    assert time.monotonic() - started < 3
    asker.join()
    wait_for(lambda: gone(pids))


def test_signal_during_the_start(start, sockets_dir):
    server = start(*fake(startup_delay=30), ready=False)
    wait_for(lambda: _status(server, "/health") == 503 and len(server.children()) == 2, 10)
    pids = server.children().values()
    assert server.stop(signal.SIGTERM, timeout=10) == 0
    assert gone(pids)
    assert os.listdir(sockets_dir) == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("victim", ["fake_scheduler", "detokenizer_manager"])
def test_death_of_a_child_ends_the_server(start, sockets_dir, victim, stream):
    server = start()
    children = server.children()
    asker = Asker(server, sampling_params=SLOW, stream=stream)
    os.kill(children[victim], signal.SIGKILL)
    started = time.monotonic()
    assert server.process.wait(10) == 1
    assert time.monotonic() - started < 5
    asker.join()
    name = victim.partition("_")[0].replace("fake", "scheduler")
    expected = f"the {name} process was killed by SIGKILL"
    if stream:  # its status had been sent before
        assert expected in asker.reply.text
    else:
        assert (asker.reply.status_code, asker.reply.json()["message"]) == (500, expected)
    assert expected in server.output()
    assert gone(children.values())
    assert os.listdir(sockets_dir) == []


def test_crash_of_the_scheduler_names_its_exit_code(start):
    server = start()
    reply = server.client.post("/generate", json={"text": "a", "sampling_params": {"custom_params": {"die": 9}}})
    assert (reply.status_code, reply.json()["message"]) == (500, "the scheduler process ended with exit code 9")
    assert server.process.wait(5) == 1
    assert re.search(r"the scheduler process ended with exit code 9: the server ends", server.output())


def test_killed_server_takes_its_children_along(start, sockets_dir):
    """Nobody is left to tell them: they see the parent's pipe close."""
    server = start()
    pids = server.children().values()
    server.stop(signal.SIGKILL)
    wait_for(lambda: gone(pids), 5)
    assert os.listdir(sockets_dir) == []


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
