"""A profile nobody stops, in a real server: it ends by itself, its memory comes back, and others are served."""

import gzip
import json
import sys
import threading
import time

import psutil
import pytest

from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import ServerProcess, wait_for

register_cpu_ci(est_time=60, suite="base-a-test-cpu")

LONG = {"text": "One and one is", "stream": True, "sampling_params": {"max_new_tokens": 400, "ignore_eos": True}}
MB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("SGLANG_TORCH_PROFILER_DIR", str(tmp_path_factory.mktemp("traces")))
    with ServerProcess("sglang.launch_server", "--device", "cpu", "--max-total-tokens", "8192", timeout=120) as server:
        yield server
    patch.undo()


class Load(threading.Thread):
    """One request after the other; `longest` is the longest wait for a token."""

    def __init__(self, server: ServerProcess):
        super().__init__()
        self.server, self.ended, self.longest = server, False, 0.0

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ended = True
        self.join()

    def run(self) -> None:
        while not self.ended:
            with self.server.client.stream("POST", "/generate", json=LONG) as reply:
                last = time.monotonic()
                for line in reply.iter_lines():
                    if line:
                        self.longest = max(self.longest, time.monotonic() - last)
                        last = time.monotonic()
                    if self.ended:
                        break


def test_unended_profiles_are_bounded_and_give_memory_back(server):
    process = psutil.Process(server.children()["run_scheduler"])
    after = []
    with Load(server) as load:
        for settings in ({}, {"with_stack": True, "record_shapes": True}, {"with_stack": True, "record_shapes": True}):
            reply = server.client.post("/start_profile", json=settings)
            assert reply.status_code == 200, reply.text
            peak = 0

            def ended() -> bool:
                nonlocal peak
                peak = max(peak, process.memory_info().rss)
                return not server.internal_state()["profile"]["running"]

            wait_for(ended, 120)
            # 200,000 events with stacks have up to 5 kB each, should the writer be slow.
            assert peak < process.memory_info().rss + 1000 * MB
            profile = server.client.post("/stop_profile").json()  # it has ended, and says so once
            assert profile["end_reason"] == "the limit of 200000 events is reached"
            assert 200_000 <= profile["events"] < 300_000
            assert len(profile["files"]) == 1
            assert server.client.post("/stop_profile").status_code == 400
            after.append(process.memory_info().rss)
    assert after[2] < after[0] + 150 * MB, [rss // MB for rss in after]
    assert load.longest < 10, "nobody else waits for a trace to be written"


def test_stop_gives_a_trace_that_is_there(server):
    with Load(server):
        assert server.client.post("/start_profile").status_code == 200
        wait_for(lambda: server.internal_state()["profile"]["steps"].get("ALL", 0) > 3, 60)
        profile = server.client.post("/stop_profile").json()
    assert (profile["running"], profile["end_reason"]) == (False, "stopped")
    [path] = profile["files"]
    with gzip.open(path) as file:
        names = [event.get("name", "") for event in json.load(file)["traceEvents"]]
    assert sum(name.startswith("step ") for name in names) >= profile["steps"]["ALL"]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
