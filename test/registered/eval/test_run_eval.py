"""Upstream's evaluation by its name: what is asked, what is scored, what is refused."""

import json
import sys
from types import SimpleNamespace

import pytest

from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.eval_data import SHIPPED, load
from sglang.test.run_eval import main, run_eval
from sglang.test.stub_server import stub_server

register_cpu_ci(est_time=4, suite="unit-test-cpu")

SHOTS, ASKED = 2, 6
QUESTIONS = load(SHIPPED["seen"])[SHOTS : SHOTS + ASKED]
GOLD = {q.question: q.gold for q in QUESTIONS}


def reply(prompt: str) -> str:
    """Right but for the first question."""
    question = next(q for q in GOLD if q in prompt)
    return f"It is {GOLD[question] + (question == QUESTIONS[0].question):g}."


def flags(url: str, *more: str) -> list[str]:
    return ["--base-url", url, "--eval-name", "gsm8k", "--num-shots", "2", "--num-examples", "6", *more]


@pytest.mark.parametrize("api", ["chat", "completion", "generate"])
def test_gsm8k_in_each_form(api: str, capsys):
    with stub_server(reply) as server:
        main(flags(server.url, "--api", api, "--num-threads", "4", "--max-tokens", "40", "--top-k", "5"))
    shown = capsys.readouterr().out
    assert "Score: 0.833 (n = 6," in shown and "Total latency: " in shown and "Output throughput: " in shown
    assert "6 questions of mini_gsm_seen.jsonl" in shown
    assert len(server.asked) == ASKED
    body = server.asked[0][1]
    prompt = {"chat": lambda: body["messages"][0]["content"], "completion": lambda: body["prompt"],
              "generate": lambda: body["text"]}[api]()  # fmt: skip
    assert prompt.count("Question: ") == SHOTS + 1 and prompt.endswith("\nAnswer:")  # examples in a chat too
    params = body.get("sampling_params", body)
    assert (params["temperature"], params["top_p"], params["top_k"]) == (0, 1, 5) and "min_p" not in params


def test_called_as_upstreams_tests_call_it(capsys):
    with stub_server(reply) as server:
        args = SimpleNamespace(
            base_url=f"{server.url}/v1", model="stub-model", eval_name="gsm8k", api="chat", num_examples=6, num_shots=2,
            num_threads=3, repeat=2, chat_template_kwargs={"enable_thinking": True}, other_tool_flag=1,
        )  # fmt: skip
        found = run_eval(args)
    assert found["score"] == found["mean"] == 5 / 6 and found["std"] == pytest.approx((5 / 36) ** 0.5)
    assert found["latency"] > 0 and found["output_throughput"] > 0 and found["n"] == 6
    assert found["scores"] == ["0.833", "0.833"] and found["mean_score"] == 5 / 6
    assert "Repeat: 2, mean: 0.833" in capsys.readouterr().out
    body = server.asked[0][1]
    assert body["model"] == "stub-model" and body["chat_template_kwargs"] == {"enable_thinking": True}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--eval-name mmlu needs data that is not here, and nothing is downloaded; gsm8k is served"),
        (["--eval-name", "aime25"], "--eval-name aime25 needs data that is not here"),
        (["--eval-name", "gsm9k"], "--eval-name gsm9k is no evaluation; gsm8k is served"),
        (["--eval-name", "gsm8k", "--thinking-mode", "qwen-3"], "for Gemma 4 give --chat-template-kwargs"),
        (["--eval-name", "gsm8k", "--categories", "x"], "--categories is for other evaluations"),
        (["--eval-name", "gsm8k", "--gsm8k-data-path", "/nowhere"], "No such file"),
        (["--eval-name", "gsm8k", "--api", "completion", "--reasoning-effort", "low"], "is for --api chat"),
        (["--eval-name", "gsm8k", "--repeat", "2", "--output-file", "x"], "leave --repeat out"),
        (["--eval-name", "gsm8k", "--chat-template-kwargs", "[]"], "--chat-template-kwargs: invalid JSON object"),
        (["--num-examples", "0"], "must be at least 1"),
    ],
)
def test_what_is_refused(words: list[str], says: str, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--port", "9", *words])
    assert ended.value.code == 2 and says in capsys.readouterr().err


def test_a_failed_request_is_no_wrong_answer():
    body = json.dumps({"message": "too long"}).encode()
    with stub_server(lambda prompt: (400, body)) as server, pytest.raises(SystemExit) as ended:
        main(flags(server.url))
    assert "answered with 400" in str(ended.value.code)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
