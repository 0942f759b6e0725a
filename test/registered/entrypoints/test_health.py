"""/health_generate: it tells of tokens, whoever asks how often, and takes nobody's place."""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import Asker, wait_for

register_cpu_ci(est_time=20, suite="base-a-test-cpu")


def test_full_queue_is_no_illness(start):
    server = start("--max-running-requests", "2", "--max-queued-requests", "1")
    slow = {"max_new_tokens": 400, "custom_params": {"delay": 0.05}, "n": 3}
    asker = Asker(server, sampling_params=slow)
    assert server.client.post("/generate", json={"text": "a"}).status_code == 503
    for _ in range(20):
        assert server.client.get("/health_generate").status_code == 200
        time.sleep(0.02)
    server.client.post("/abort_request", json={"abort_all": True})
    asker.join()


def test_full_queue_of_slow_tokens_is_no_illness(start):
    """The probe is refused, and the next token of another request answers for it."""
    server = start("--max-running-requests", "1", "--max-queued-requests", "1")
    asker = Asker(server, sampling_params={"max_new_tokens": 20, "custom_params": {"delay": 3}, "n": 2}, stream=True)
    time.sleep(1.5)
    assert server.client.get("/health_generate").status_code == 200
    server.client.post("/abort_request", json={"abort_all": True})
    asker.join()


def test_many_who_ask_share_few_probes(start):
    server = start("--api-key", "k")
    server.client.headers["Authorization"] = "Bearer k"
    before = len(server.internal_state()["received"])
    started = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        replies = list(
            pool.map(lambda _: server.client.get("/health_generate", headers={"Authorization": ""}), range(300))
        )
    assert {reply.status_code for reply in replies} == {200}
    assert len(server.internal_state()["received"]) - before <= 2 + (time.monotonic() - started) / 1.0


@pytest.mark.parametrize("victim", ["fake_scheduler", "detokenizer_manager"])
def test_no_token_is_ill(start, victim):
    server = start("--watchdog-timeout", "30")
    pid = server.children()[victim]
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: server.client.get("/health_generate").status_code == 503, 40)
    message = server.client.get("/health_generate").json()["message"]
    assert "no sign of life" in message or "no token within" in message
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: server.client.get("/health_generate").status_code == 200, 40)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
