"""A server of two ranks: the tokens of one rank under everything the scheduler does, nothing left over."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import ServerProcess, wait_for

register_cpu_ci(est_time=25, suite="base-a-test-cpu")

MODULE = "sglang.launch_server"
# float32: in bfloat16 the ranks' partial sums are rounded before they are added, so near ties may fall otherwise
FLAGS = ["--device", "cpu", "--dtype", "float32", "--max-total-tokens", "4096", "--chunked-prefill-size", "64"]
TWO = [
    "--tp-size",
    "2",
    "--max-total-tokens",
    "256",
    "--enable-hierarchical-cache",
    "--hicache-ratio",
    "8",
]  # last wins
STORY = "Mia has 12 marbles. She gives 5 to her brother and finds 3 more in the garden. "
PROMPTS = [
    f"{n}. " + STORY * n + "How many marbles does she have?" for n in (1, 2, 4, 1, 3, 4)
]  # many chunks, some equal
GREEDY = {"temperature": 0, "max_new_tokens": 24}
SEEDED = {"temperature": 1.0, "top_p": 0.9, "sampling_seed": 7, "max_new_tokens": 24}


@pytest.fixture(autouse=True, scope="module")
def one_machine():
    """One thread a rank."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    yield
    patch.undo()


def answers(server: ServerProcess) -> list[list[int]]:
    """Every prompt greedily and seeded, all at once, then once more over the prefix cache."""

    def ask(job: tuple[str, dict]) -> list[int]:
        reply = server.client.post("/generate", json={"text": job[0], "sampling_params": job[1]})
        assert reply.status_code == 200, reply.text
        return reply.json()["output_ids"]

    jobs = [(prompt, params) for prompt in PROMPTS for params in (GREEDY, SEEDED)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [ids for _ in range(2) for ids in pool.map(ask, jobs)]


def test_two_ranks_answer_as_one():
    with ServerProcess(MODULE, *FLAGS) as server:
        want = answers(server)
    # fresh: each rank then has its own order of sets, which forks of one process share
    with ServerProcess(MODULE, *FLAGS, *TWO, fresh=True) as server:
        assert answers(server) == want
        assert server.internal_state()["host_loaded_tokens_total"] > 0, "prefixes left the KV memory and came back"
        assert server.client.get("/server_info").json()["tp_size"] == 2
        slow = {"temperature": 0, "max_new_tokens": 1500, "ignore_eos": True}
        with ThreadPoolExecutor(1) as pool:
            aborted = pool.submit(
                server.client.post, "/generate", json={"text": "a", "rid": "r", "sampling_params": slow}
            )
            wait_for(lambda: server.internal_state()["num_running_reqs"] == 1)
            assert server.client.post("/abort_request", json={"rid": "r"}).json() == {"aborted": 1}
            assert aborted.result().json()["meta_info"]["finish_reason"]["type"] == "abort"
        assert server.client.post("/flush_cache").status_code == 200
        assert answers(server) == want
        assert server.stop() == 0
        assert "error" not in server.output().lower()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
