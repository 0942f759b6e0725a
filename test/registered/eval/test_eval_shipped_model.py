"""The evaluation from end to end on the shipped model's server: both forms, and two runs held against each other."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.compare_runs import compare
from sglang.test.eval_data import load_answers, question_set
from sglang.test.few_shot_gsm8k import run_eval
from sglang.test.gsm8k_eval import evaluate
from sglang.test.server_process import ServerProcess

register_cpu_ci(est_time=40, suite="base-b-test-cpu")

QUESTIONS = 20


@pytest.fixture(scope="module")
def server():
    with ServerProcess("sglang.launch_server", "--random-seed", "1") as running:
        yield running


def test_few_shot_and_completions_agree(server: ServerProcess, tmp_path: Path):
    """/generate and /v1/completions get the same prompt, so what they answer may differ by rounding only."""
    few_shot, completion = tmp_path / "few_shot.jsonl", tmp_path / "completion.jsonl"
    args = SimpleNamespace(
        num_shots=5,
        data_path=None,
        num_questions=QUESTIONS,
        max_new_tokens=256,
        parallel=QUESTIONS,
        host="http://127.0.0.1",
        port=server.port,
        output_file=str(few_shot),
    )
    metrics = run_eval(args)
    assert metrics["n"] == QUESTIONS and metrics["ci_high"] >= 0.75
    assert metrics["invalid"] <= 0.1 and metrics["output_throughput"] > 0
    data = question_set(None, None, None, 5, QUESTIONS)
    result = evaluate(server.url, data.questions, "completion", data.shots, QUESTIONS, 256, completion)
    assert result.score.interval[1] >= 0.75
    comparison = compare(load_answers(few_shot), load_answers(completion))
    assert len(comparison.pairs) == QUESTIONS
    assert len(comparison.changed) <= 2
    assert all(a.completion_tokens > 10 and a.finish_reason == "stop" for a in result.answers if a.correct)


def test_chat(server: ServerProcess, tmp_path: Path):
    questions = question_set(None, None, None, 0, QUESTIONS).questions
    result = evaluate(server.url, questions, "chat", concurrency=QUESTIONS, max_tokens=256)
    assert result.score.n == QUESTIONS and result.score.interval[1] >= 0.80
    assert [a.question for a in result.answers] == [q.question for q in questions]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
