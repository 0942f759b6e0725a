"""A client's name for its requests may come again as soon as its client likes, on a whole server with a real model."""

import contextlib
import itertools
import sys

import httpx
import pytest

from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import ServerProcess, wait_for

register_cpu_ci(est_time=30, suite="base-a-test-cpu")

PROMPTS = ("Tom has 3 boxes with 4 apples each.", "Mia reads 10 pages a day.", "1 2 3 4 5 6 7 8")
STOPS = {"stop": ["a", "e", "o", "i"], "max_new_tokens": 300, "temperature": 0, "ignore_eos": True}
LONG = {"max_new_tokens": 200, "temperature": 0, "ignore_eos": True}
TIMES = 30


@pytest.fixture(scope="module")
def server():
    flags = ("--enable-deterministic-inference", "--max-total-tokens", "20000", "--log-requests")
    with ServerProcess("sglang.launch_server", *flags) as server:
        yield server


def ask(server: ServerProcess, text: str, params: dict, rid: str | None = None) -> dict:
    reply = server.client.post("/generate", json={"text": text, "rid": rid, "sampling_params": params})
    assert reply.status_code == 200, reply.text
    return reply.json()


def is_idle(server: ServerProcess) -> bool:
    return server.internal_state()["num_running_reqs"] == 0


def test_after_a_stop_string(server):
    """The client has its answer before the scheduler has heard of the stop string: the same name came again meanwhile,
    and the scheduler ended by an assertion."""
    own = [ask(server, text, STOPS) for text in PROMPTS]
    assert all(answer["meta_info"]["finish_reason"]["type"] == "stop" for answer in own)
    for i in range(TIMES):
        answer = ask(server, PROMPTS[i % 3], STOPS, rid="same")
        assert answer["meta_info"]["id"] == "same"
        assert (answer["text"], answer["output_ids"]) == (own[i % 3]["text"], own[i % 3]["output_ids"])
    wait_for(lambda: is_idle(server))


def test_after_a_disconnect(server):
    """The new request got the tokens and the end of the one whose client had left."""
    own = [ask(server, text, {**LONG, "max_new_tokens": 12}) for text in PROMPTS]
    rids = itertools.cycle(("r0", "r1"))
    for i in range(TIMES):
        rid = next(rids)
        body = {"text": PROMPTS[(i + 1) % 3], "rid": rid, "stream": True, "sampling_params": LONG}
        with contextlib.closing(httpx.Client(base_url=server.url)) as client:
            with client.stream("POST", "/generate", json=body) as stream:
                next(stream.iter_raw())
        reply = None
        while reply is None or (reply.status_code == 400 and "in use" in reply.text):  # until its end is noticed
            wanted = {"text": PROMPTS[i % 3], "rid": rid, "sampling_params": {**LONG, "max_new_tokens": 12}}
            reply = server.client.post("/generate", json=wanted)
        assert reply.status_code == 200, reply.text
        assert reply.json()["text"] == own[i % 3]["text"]
        assert reply.json()["meta_info"]["finish_reason"]["type"] == "length"
    wait_for(lambda: is_idle(server))


def test_a_name_forges_no_line_of_the_log(server):
    ask(server, "x", {"max_new_tokens": 1}, rid="x\n[2026-01-01 00:00:00 http] FORGED\x1b[31m\0")
    assert "FORGED" in server.output()
    assert not any(line.startswith("[2026-01-01") for line in server.output().splitlines())
    assert "\x1b" not in server.output() and "\0" not in server.output()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
