"""sglang-router in front of two servers: it finds out what they are, sends requests where there is least to do or where
their prefix is, and goes on when one of them is killed."""

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import httpx
import openai
import pytest

from sglang.srt.server_args import ServerArgs, model_folder
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import ServerProcess, free_port, wait_for

register_cpu_ci(est_time=20, suite="base-a-test-cpu", mostly_waits=True)
pytestmark = pytest.mark.skipif(not find_spec("sglang_router"), reason="sglang-router has no wheel for this machine")

FOLDER = model_folder(ServerArgs())
ASK = [{"role": "user", "content": "Weather in Oslo?"}]
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def servers():
    flags = ("--model-path", FOLDER, "--enable-metrics", "--log-level", "warning")
    both = [ServerProcess("sglang.test.fake_server", *flags) for _ in range(2)]
    try:
        for server in both:
            server.wait_ready()
        yield both
    finally:
        for server in both:
            server.stop(signal.SIGKILL)


def start_router(servers: list[ServerProcess], policy: str, *flags: str) -> ServerProcess:
    urls = [server.url for server in servers]
    router = ServerProcess(
        "sglang_router.launch_router", "--worker-urls", *urls, "--policy", policy, "--prometheus-port",
        str(free_port()), "--prometheus-host", "127.0.0.1", "--worker-startup-check-interval", "1", *flags,
    )  # fmt: skip
    try:
        router.wait_ready()
        wait_for(lambda: sum(w["is_healthy"] for w in workers(router)) == len(urls), 60)
    except BaseException:
        router.stop(signal.SIGKILL)
        raise
    return router


@pytest.fixture(scope="module")
def router(servers):
    """By load, which it asks for every second."""
    router = start_router(servers, "power_of_two", "--health-check-interval-secs", "1")
    yield router
    router.stop(signal.SIGKILL)


def workers(router: ServerProcess) -> list[dict]:
    return router.client.get("/workers").json()["workers"]


def loads(router: ServerProcess) -> dict[str, int]:
    return {w["worker"]: w["load"] for w in router.client.get("/get_loads").json()["workers"]}


def received(server: ServerProcess) -> int:
    return len(server.internal_state()["received"])


def running(server: ServerProcess) -> int:
    return len(server.internal_state()["running"])


def generate(router: ServerProcess, text: str = "abc", **params) -> httpx.Response:
    return router.client.post("/generate", json={"text": text, "sampling_params": {"max_new_tokens": 4} | params})


def test_it_learns_what_they_are(router, servers):
    for worker in workers(router):
        assert (worker["model_id"], worker["connection_mode"]) == ("gemma-4-mini-it", "HTTP")
        assert worker["metadata"]["served_model_name"] == "gemma-4-mini-it"
    info = router.client.get("/get_model_info").json()
    assert info == servers[0].client.get("/model_info").json()
    assert "sglang_num_running_reqs" in router.client.get("/engine_metrics").text  # its form of the names
    assert router.client.post("/flush_cache").json()["workers_flushed"] == 2


def test_every_endpoint_passes(router):
    reply = generate(router)
    assert reply.status_code == 200 and len(reply.json()["output_ids"]) == 4
    body = {"text": "abc", "sampling_params": {"max_new_tokens": 4}, "stream": True}
    with router.client.stream("POST", "/generate", json=body) as stream:
        assert [line for line in stream.iter_lines() if line][-1] == "data: [DONE]"
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0) as client:
        names = {"model": "gemma-4-mini-it", "max_tokens": 4}
        assert client.chat.completions.create(messages=ASK, tools=[TOOL], **names).usage.completion_tokens == 4
        chunks = list(client.chat.completions.create(messages=ASK, stream=True, **names))
        assert chunks[-1].choices[0].finish_reason == "length"
        assert client.completions.create(prompt="abc", **names).choices[0].text
        made = client.responses.create(model="gemma-4-mini-it", input="abc", max_output_tokens=4)
        assert made.usage.output_tokens == 4
        with pytest.raises(openai.BadRequestError, match="continue_final_message needs an assistant message"):
            client.chat.completions.create(messages=ASK, extra_body={"continue_final_message": True}, **names)


def test_requests_go_where_there_is_less_to_do(router, servers):
    busy, idle = servers
    with ThreadPoolExecutor(1) as pool:
        body = {"text": "a b c " * 50, "sampling_params": {"max_new_tokens": 1000, "custom_params": {"delay": 0.2}}}
        held = pool.submit(httpx.post, f"{busy.url}/generate", json=body, timeout=60)
        try:
            wait_for(lambda: loads(router)[busy.url] > loads(router)[idle.url] == 0, 10)
            (load,) = busy.client.get("/get_load").json()
            assert (load["dp_rank"], load["num_reqs"], load["num_waiting_reqs"]) == (0, 1, 0)
            assert load["num_tokens"] > 100
            # once it has asked for the loads itself; at random it would be one in 65,536
            wait_for(lambda: all(goes_to(router, idle) for _ in range(16)), 20)
        finally:
            busy.client.post("/abort_request", json={"abort_all": True})
        assert held.result().json()["meta_info"]["finish_reason"]["type"] == "abort"
    wait_for(lambda: set(loads(router).values()) == {0}, 10)


def goes_to(router: ServerProcess, server: ServerProcess) -> bool:
    before = received(server)
    assert generate(router).status_code == 200
    return received(server) == before + 1


def test_prefixes_stay_on_one_server(servers):
    router = start_router(servers, "cache_aware")
    try:
        before = [received(server) for server in servers]
        for i in range(6):
            assert generate(router, "A long beginning that all of these have in common. " * 5 + str(i)).is_success
        assert sorted(received(s) - b for s, b in zip(servers, before, strict=True)) == [0, 6]
    finally:
        router.stop(signal.SIGKILL)


def test_when_one_is_killed_requests_go_on(router, servers):
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(generate, router, max_new_tokens=4000) for _ in range(16)]
        wait_for(lambda: any(map(running, servers)), 10)
        gone, left = sorted(servers, key=running, reverse=True)
        gone.process.kill()
        assert [f.result().status_code for f in asked] == [200] * 16  # those that it had are asked again elsewhere
    assert [generate(router).status_code for _ in range(8)] == [200] * 8
    wait_for(lambda: [w["url"] for w in workers(router) if w["is_healthy"]] == [left.url], 20)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
