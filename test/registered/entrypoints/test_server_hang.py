"""A process that hangs: /health says so, a pause is forgiven, and in the end the server ends and names the cause."""

import json
import os
import signal
import sys
import time

import pytest

from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import Asker, status, wait_for

register_cpu_ci(est_time=110, suite="base-a-test-cpu", mostly_waits=True)

VICTIMS = ["fake_scheduler", "detokenizer_manager"]
SLOW = {"max_new_tokens": 400, "custom_params": {"delay": 0.05}}  # 20 s


def name_of(victim: str) -> str:
    return victim.partition("_")[0].replace("fake", "scheduler")


def stop(server, victim: str) -> int:
    pid = server.children()[victim]
    os.kill(pid, signal.SIGSTOP)
    return pid


@pytest.mark.parametrize("victim", VICTIMS)
def test_stopped_process_is_told_and_ends_the_server(start, sockets_dir, victim):
    server = start("--watchdog-timeout", "8")
    asker = Asker(server, sampling_params=SLOW)
    stop(server, victim)
    wait_for(lambda: status(server, "/health") == 503, 20)
    assert server.process.poll() is None, "it is told long before it ends"
    message = server.client.get("/health").json()["message"]
    assert f"from the {name_of(victim)} (stopped)" in message
    assert server.process.wait(30) == 1
    asker.join()
    assert asker.reply.status_code == 500
    assert f"from the {name_of(victim)} (stopped) (--watchdog-timeout is 8 s): the server ends" in server.output()
    assert os.listdir(sockets_dir) == []


@pytest.mark.parametrize("victim", VICTIMS)
def test_pause_is_forgiven(start, victim):
    server = start("--watchdog-timeout", "30")
    asker = Asker(server, sampling_params={"max_new_tokens": 20, "custom_params": {"delay": 0.05}})
    pid = stop(server, victim)
    wait_for(lambda: status(server, "/health") == 503, 40)
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: status(server, "/health") == 200, 20)
    asker.join()
    assert asker.reply.json()["meta_info"]["completion_tokens"] == 20
    assert server.stop() == 0


def test_loop_that_hangs_shows_where(start):
    """As in a launch that never returns, or in waiting for another rank."""
    server = start("--watchdog-timeout", "5")
    params = {"custom_params": {"hang": 600}}
    reply = server.client.post("/generate", json={"text": "a", "sampling_params": params}, timeout=40)
    assert reply.status_code == 500
    assert "no sign of life" in reply.json()["message"]
    assert server.process.wait(20) == 1
    assert "on_TokenizedGenerateReq" in server.output(), "the stack of the hung thread"


def test_long_first_compile_is_no_hang(start):
    fake = {"fake": {"first_delay": 9}}
    server = start("--watchdog-timeout", "5", "--json-model-override-args", json.dumps(fake))
    assert status(server, "/health") == 200
    assert server.stop() == 0


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("victim", VICTIMS)
def test_sigterm_while_a_process_is_stopped(start, sockets_dir, victim, busy):
    server = start()
    asker = Asker(server, sampling_params=SLOW) if busy else None
    stop(server, victim)
    time.sleep(3)
    started = time.monotonic()
    assert server.stop(signal.SIGTERM, timeout=20) == 1
    assert time.monotonic() - started < 12
    if asker:
        asker.join()
        assert (asker.reply.status_code, asker.reply.json()["message"]) == (503, "the server is shutting down")
    assert f"hung, and killed in the end: {name_of(victim)}" in server.output()
    assert os.listdir(sockets_dir) == []


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
