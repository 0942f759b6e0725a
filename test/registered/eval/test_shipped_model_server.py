"""The server as a newcomer starts it, on the shipped model: its scores over HTTP, with tools and JSON too, and that
load, disconnects and aborts leave no slot behind."""

import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

import sglang
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.eval_data import last_number, load
from sglang.test.gsm8k_eval import evaluate
from sglang.test.server_process import ServerProcess

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts/train_model"))
from evaluate_tools import score_forms, score_talks
from replies import Served

register_cpu_ci(est_time=110, suite="base-b-test-cpu")

DATA = Path(sglang.__file__).parent / "test" / "data"
SEEN = DATA / "mini_gsm_seen.jsonl"
QUESTION = "Tom has 3 boxes with 4 apples each. He eats 2 apples. How many apples are left?"


@pytest.fixture(scope="module")
def server():
    with ServerProcess("sglang.launch_server", "--random-seed", "1") as running:
        yield running
        assert running.stop() == 0
    assert "Traceback" not in running.output()


def wait_idle(server: ServerProcess, seconds: float = 60) -> dict:
    """Until nothing runs or waits; the scheduler has then checked free + cached = capacity. Returns its state."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = server.internal_state()
        if state["num_running_reqs"] == state["num_queue_reqs"] == 0:
            assert state["full_free"] + state["full_cached"] == state["full_capacity"]
            assert state["swa_free"] + state["swa_cached"] == state["swa_capacity"]
            return state
        time.sleep(0.1)
    raise AssertionError(f"still busy: {state}")


@pytest.mark.parametrize("form,shots,floor", [("chat", 0, 0.80), ("completion", 5, 0.75)])
def test_score(server: ServerProcess, form: str, shots: int, floor: float):
    """The goals of the model card, on every fifth question: the interval's upper end below the goal would refute it."""
    rows = load(SEEN)
    result = evaluate(server.url, rows[shots::5], form, load(DATA / "mini_gsm_few_shot.jsonl")[:shots])
    print(form, result)
    assert result.score.interval[1] >= floor
    assert result.score.share >= floor - 0.05
    wait_idle(server)


def test_tools_it_has_never_seen(server: ServerProcess):
    """Calls, and loops of two; the model card has the scores of the whole sets."""
    report = score_talks(Served(server.url), 10)
    for name in ("calls: right name and arguments", "loops: solved", "thoughts exactly where asked for"):
        assert report[name]["share"] >= 0.7, (name, report)
    wait_idle(server)


def test_json_under_a_grammar(server: ServerProcess):
    report = score_forms(Served(server.url), 10, grammar=True)
    assert report["JSON: fits the schema"]["share"] == 1.0, report
    assert report["JSON: right"]["share"] >= 0.7, report
    wait_idle(server)


def test_greedy_answers_repeat_alone_and_in_company(server: ServerProcess):
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 100}
    first = server.client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert last_number(first["message"]["content"]) == 10 and first["finish_reason"] == "stop"
    again = server.client.post("/v1/chat/completions", json=body).json()
    assert again["choices"][0]["message"]["content"] == first["message"]["content"]


def test_disconnected_clients_free_their_slots(server: ServerProcess):
    def leave_early() -> None:
        params = {"max_new_tokens": 3000, "ignore_eos": True}
        body = {"text": QUESTION, "sampling_params": params, "stream": True}
        with httpx.stream("POST", f"{server.url}/generate", json=body, timeout=30) as reply:
            for _, _line in zip(range(3), reply.iter_lines(), strict=False):
                pass

    threads = [threading.Thread(target=leave_early) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_idle(server)


def test_abort_all_answers_everyone(server: ServerProcess):
    replies = []

    def ask() -> None:
        params = {"max_new_tokens": 3000, "ignore_eos": True}
        body = {"text": QUESTION, "sampling_params": params}
        replies.append(server.client.post("/generate", json=body, timeout=300))

    threads = [threading.Thread(target=ask) for _ in range(70)]  # more than run at once
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 120
    while (state := server.internal_state())["num_running_reqs"] + state["num_queue_reqs"] < 70:
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    assert state["num_queue_reqs"] > 0
    assert server.client.post("/abort_request", json={"abort_all": True}).status_code == 200
    for thread in threads:
        thread.join()
    assert len(replies) == 70
    assert all(r.json()["meta_info"]["finish_reason"]["type"] == "abort" for r in replies)
    wait_idle(server)


def test_bad_requests_do_not_disturb_good_ones(server: ServerProcess):
    bad = [
        {"text": QUESTION, "sampling_params": {"temperature": -1}},
        {"text": QUESTION, "sampling_params": {"top_kk": 1}},
        {"text": QUESTION, "sampling_params": {"stop": ["x"] * 1000}},
        {"input_ids": [5, 10**6]},
        {"input_ids": [-1]},
        {"input_ids": []},
        {"input_ids": [5] * 5000},
        {"text": 5},
        {},
    ]
    for body in bad:
        reply = server.client.post("/generate", json=body)
        assert reply.status_code == 400, (body, reply.text)
        assert reply.json()["error"]["message"] if "error" in reply.json() else reply.json()["message"]
    assert server.client.post("/generate", content=b"{").status_code == 400
    assert server.client.post("/generate", content=b" " * 20_000_000).status_code == 413
    good = server.client.post("/generate", json={"text": QUESTION, "sampling_params": {"max_new_tokens": 4}})
    assert good.status_code == 200
    wait_idle(server)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
