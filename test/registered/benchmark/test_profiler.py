"""Profiles of a live server: the endpoints, and `python -m sglang.profiler` against it, at work and idle."""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sglang import profiler
from sglang.srt.utils.trace_table import read_trace, stage_table
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import ServerProcess, free_port, wait_for

register_cpu_ci(est_time=40, suite="base-a-test-cpu", mostly_waits=True)

KEY = "secret-key"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def server(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_TORCH_PROFILER_DIR", str(root))
        server = ServerProcess("sglang.launch_server", "--api-key", KEY)
        with server:
            server.client.headers["Authorization"] = f"Bearer {KEY}"
            yield server


@contextlib.contextmanager
def traffic(server: ServerProcess) -> Iterator[None]:
    """Short requests, one after another, until the context ends."""
    over = threading.Event()

    def work() -> None:
        body = {"text": "one two three", "sampling_params": {"max_new_tokens": 6, "ignore_eos": True}}
        while not over.is_set():
            server.client.post("/flush_cache")
            assert server.client.post("/generate", json=body).status_code == 200

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def running(server: ServerProcess) -> bool:
    profile = server.internal_state()["profile"]
    return profile is not None and profile["running"]


def start(server: ServerProcess, status: int = 200, **body) -> dict:
    reply = server.client.post("/start_profile", json=body)
    assert reply.status_code == status, reply.text
    return reply.json()


def test_start_and_stop(server, root):
    started = server.client.post("/start_profile").json()  # no body: the defaults
    assert (started["running"], started["output_dir"]) == (True, str(root))
    assert "running already" in start(server, 400)["message"]
    server.client.post("/generate", json={"text": "a", "sampling_params": {"max_new_tokens": 4, "ignore_eos": True}})
    reply = server.client.post("/stop_profile")
    assert reply.status_code == 200
    stopped = reply.json()
    assert stopped["files"] == [f"{root}/{started['profile_id']}-TP-0.trace.json.gz"]
    assert stopped["steps"] == {"ALL": 4}
    assert server.internal_state()["profile"] == stopped
    names = {event.name for event in read_trace(stopped["files"][0])}
    assert "aten::mm" in names  # from the thread that runs the model
    assert stage_table(stopped["files"][0]).steps == 4
    reply = server.client.post("/stop_profile")
    assert (reply.status_code, reply.json()["message"]) == (400, "no profile is running")


def test_by_stage_ends_itself(server, root):
    start(server, num_steps=2, profile_by_stage=True, output_dir="stages", activities=["CPU"], profile_prefix="p")
    with traffic(server):
        wait_for(lambda: not running(server), 30)
    files = sorted(server.internal_state()["profile"]["files"])
    assert [os.path.dirname(path) for path in files] == [f"{root}/stages"] * 2
    assert [(stage_table(path).stage, stage_table(path).steps) for path in files] == [("DECODE", 2), ("EXTEND", 2)]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"output_dir": "/etc"}, "outside of"),
        ({"output_dir": "../up"}, "outside of"),
        ({"output_dir": "a\0b"}, "null"),
        ({"output_dir": "x" * 5000}, "File name too long"),
        ({"output_dir": 3}, "output_dir"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 10**9}, "num_steps"),
        ({"start_step": -1}, "start_step"),
        ({"start_step": 2**64}, "start_step"),  # no socket carries it
        ({"activities": []}, "activities"),
        ({"activities": ["XPU"]}, "activities"),
        ({"profile_prefix": "../x"}, "profile_prefix"),
        ({"profile_by_stage": True}, "needs num_steps"),
    ],
)
def test_wrong_bodies(server, root, body, says):
    before = sorted(os.listdir(root))
    assert says in start(server, 400, **body)["message"]
    assert not running(server)
    assert sorted(os.listdir(root)) == before


def test_needs_the_key(server):
    for path in ("/start_profile", "/stop_profile"):
        assert server.client.post(path, headers={"Authorization": "Bearer wrong"}).status_code == 401


def run(server: ServerProcess, *flags: str) -> int:
    return profiler.main(["--url", server.url, "--api-key", KEY, *flags])


def test_command_line_prints_tables(server, root, capsys):
    flags = ["--num-steps", "2", "--profile-by-stage", "--cpu", "--rows", "4"]
    with traffic(server):
        assert run(server, *flags, "--output-dir", "cli", "--profile-prefix", "mine") == 0
    out = capsys.readouterr().out
    assert sorted(name[:5] for name in os.listdir(root / "cli")) == ["mine-", "mine-"]
    for stage in ("EXTEND", "DECODE"):
        assert f"{stage}: 2 steps, CPU ops busy" in out
    assert out.count("aten::mm") == 2
    with traffic(server):
        assert run(server, "--num-steps", "1") == 0
    assert "all steps: 1 steps" in capsys.readouterr().out


def test_command_line_on_an_idle_server(server, capsys):
    assert run(server, "--timeout", "0.5") == 1
    assert "not enough steps within 0.5 s (recorded: none)" in capsys.readouterr().err
    assert not running(server)
    assert run(server, "--timeout", "0.5") == 1  # nothing was left running


def test_command_line_when_a_profile_runs(server, capsys):
    start(server)
    assert run(server) == 1
    assert "HTTP 400: a profile is running already" in capsys.readouterr().err
    assert running(server), "another's profile was ended"
    server.client.post("/stop_profile")


def test_command_line_refused(server, capsys):
    assert profiler.main(["--url", server.url, "--api-key", "wrong"]) == 1
    assert "HTTP 401" in capsys.readouterr().err
    assert run(server, "--gpu") == 1
    assert "GPU can't be recorded" in capsys.readouterr().err


def test_interrupted(server, capsys, monkeypatch):
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(profiler.time, "sleep", interrupt)
    assert run(server) == 130
    monkeypatch.undo()
    assert not running(server)


def test_no_server(capsys):
    assert profiler.main(["--url", f"http://127.0.0.1:{free_port()}"]) == 1
    assert "no server answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({}, "/start_profile: HTTP 404: not found"),
        ({"/start_profile": "Start profiling."}, "another kind of server"),
        ({"/start_profile": {}}, "another kind of server"),
        ({"/start_profile": {"profile_id": "1", "output_dir": "/tmp"}, "/server_info": {}}, "does not report"),
    ],
)
def test_other_servers(capsys, answers, says):
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            known = self.path in answers
            data = json.dumps(answers[self.path] if known else {"message": "not found"}).encode()
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        assert profiler.main(["--url", f"http://127.0.0.1:{other.server_port}"]) == 1
        other.shutdown()
    assert says in capsys.readouterr().err


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
