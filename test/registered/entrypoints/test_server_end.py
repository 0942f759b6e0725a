"""A server's end: signals, and the death of any of its processes."""

import concurrent.futures
import functools
import os
import re
import signal
import sys
import time

import httpx
import psutil
import pytest

from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import Asker, status, wait_for

register_cpu_ci(est_time=45, suite="base-a-test-cpu", mostly_waits=True)

SLOW = {"max_new_tokens": 400, "custom_params": {"delay": 0.05}}  # 20 s


@pytest.fixture
def start(start):
    """In new interpreters, as users start it: how signals reach its processes is what is tested."""
    return functools.partial(start, fresh=True)


def gone(pids) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_lets_requests_finish(start, sockets_dir, number):
    server = start()
    pids = server.children().values()
    assert len(pids) == 2
    asker = Asker(server, sampling_params={"max_new_tokens": 20, "custom_params": {"delay": 0.05}})
    server.process.send_signal(number)
    wait_for(lambda: status(server, "/v1/models") != 200)
    assert status(server, "/health") in (503, None)
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


STUCK = """
import time
from sglang.srt.managers import prompt_reader

prompt_reader.INLINE_CHARS = 0
prompt_reader.Tokenizer.encode_all = lambda *_: time.sleep(60)
import runpy
runpy.run_module("sglang.test.fake_server", run_name="__main__", alter_sys=True)
"""


def test_signal_while_all_threads_are_stuck(start, sockets_dir, tmp_path, monkeypatch):
    """Nothing can end a thread that tokenizes, and each client gets an answer nevertheless."""
    (tmp_path / "stuck_server.py").write_text(STUCK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    server = start(module="stuck_server")
    pids = server.children().values()
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        replies = [
            pool.submit(httpx.post, f"{server.url}/generate", json={"text": "a", "stream": bool(i % 2)}, timeout=30)
            for i in range(40)  # more than the pool has threads
        ]
        time.sleep(1)
        started = time.monotonic()
        assert server.stop(signal.SIGTERM, timeout=20) == 0
        assert time.monotonic() - started < 10
        for reply in replies:
            assert (reply.result().status_code, reply.result().json()["message"]) == (
                503,
                "the server is shutting down",
            )
    assert "Traceback" not in server.output()
    assert gone(pids)
    assert os.listdir(sockets_dir) == []


def test_nohup_keeps_its_meaning(start):
    server = start(prepare=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    server.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert status(server, "/v1/models") == 200
    assert server.stop() == 0


def test_second_signal_ends_at_once(start):
    server = start()
    pids = server.children().values()
    asker = Asker(server, sampling_params=SLOW)
    server.process.send_signal(signal.SIGINT)
    wait_for(lambda: status(server, "/v1/models") != 200)
    started = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(10) == 1
    assert time.monotonic() - started < 3
    asker.join()
    wait_for(lambda: gone(pids))


def test_signal_during_the_start(start, sockets_dir):
    server = start("--json-model-override-args", '{"fake": {"startup_delay": 30}}', ready=False)
    wait_for(lambda: status(server, "/health") == 503 and len(server.children()) == 2, 10)
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
