"""The evaluation against a server that answers as told: what is asked, how it is scored, and how failed runs end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from sglang.test import few_shot_gsm8k, gsm8k_eval
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.eval_data import Question, load_answers
from sglang.test.few_shot_gsm8k import run_eval
from sglang.test.gsm8k_eval import EvalError, evaluate
from sglang.test.server_process import ServerProcess, free_port, wait_for
from sglang.test.stub_server import StubServer, stub_server

register_cpu_ci(est_time=5, suite="unit-test-cpu")

QUESTIONS = [Question(f"Count to {i}.", f"#### {i}") for i in range(10)]
SHOTS = [Question("1 + 1?", "#### 2")]
PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions", "generate": "/generate"}


@pytest.fixture
def stub() -> Iterator[Callable[..., StubServer]]:
    with contextlib.ExitStack() as servers:
        yield lambda reply: servers.enter_context(stub_server(reply))


def number_asked(prompt: str) -> int:
    return int(prompt.rpartition("Count to ")[2].split(".")[0])


def below_seven(prompt: str) -> str:
    """Right below 7, a wrong number at 7 and 8, none at 9."""
    i = number_asked(prompt)
    return "I lost count" if i == 9 else f"That is {i if i < 7 else i + 1}."


@pytest.fixture
def data(tmp_path) -> str:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"question": q.question, "answer": q.answer}) + "\n" for q in SHOTS + QUESTIONS))
    return str(path)


@pytest.mark.parametrize("form", PATHS)
def test_scores_and_file(stub, tmp_path, form):
    server, path = stub(below_seven), tmp_path / "run.jsonl"
    result = evaluate(server.url, QUESTIONS, form, [] if form == "chat" else SHOTS, 3, 40, path)
    assert (result.score.hits, result.score.n, result.invalid) == (7, 10, 0.1)
    assert result.tokens_per_second == pytest.approx(30 / result.seconds)
    assert str(result).startswith("score 0.700 (n = 10, 95 % interval 0.397 to 0.892), invalid 0.100, ")
    assert [a.index for a in result.answers] == list(range(10))
    assert [a.prediction for a in result.answers] == [0, 1, 2, 3, 4, 5, 6, 8, 9, None]
    assert load_answers(path) == result.answers
    assert {p for p, _ in server.asked} == {PATHS[form]}


def test_what_is_asked(stub):
    server = stub(below_seven)
    for form in PATHS:
        evaluate(server.url, QUESTIONS[3:4], form, [] if form == "chat" else SHOTS, 1, 40)
    chat, completion, generate = (body for _, body in server.asked)
    prompt, stop = "Question: 1 + 1?\nAnswer: #### 2\n\nQuestion: Count to 3.\nAnswer:", gsm8k_eval.STOP
    common = {"model": "stub", "temperature": 0, "max_tokens": 40}
    assert stop == ["Question", "Assistant:", "<|separator|>"]
    assert chat == common | {"messages": [{"role": "user", "content": "Count to 3."}]}
    assert completion == common | {"prompt": prompt, "stop": stop}
    assert generate == {"text": prompt, "sampling_params": {"temperature": 0, "max_new_tokens": 40, "stop": stop}}


def test_no_more_at_a_time_than_told(stub):
    together, most, lock = [0], [0], threading.Lock()
    full = threading.Barrier(3)

    def reply(prompt: str) -> str:
        with lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
        if number_asked(prompt) < 9:
            full.wait(10)  # three are here at once
        with lock:
            together[0] -= 1
        return "5"

    evaluate(stub(reply).url, QUESTIONS, concurrency=3)
    assert most == [3]


@pytest.mark.parametrize(
    "failure,why",
    [
        (None, "no answer from /v1/chat/completions: RemoteProtocolError"),
        ((500, b"out of order"), "/v1/chat/completions answered with 500: out of order"),
        ((200, b"{}"), "in another form than expected"),
        ((200, b'{"choices": [], "usage": {"completion_tokens": 1}}'), "in another form than expected"),
        ("ABORT 4", "the server aborted a request"),
    ],
)
def test_a_failed_request_ends_the_run_and_keeps_its_answers(stub, tmp_path, failure, why):
    server, path = stub(lambda prompt: "4" if number_asked(prompt) < 4 else failure), tmp_path / "run.jsonl"
    with pytest.raises(EvalError) as e:
        evaluate(server.url, QUESTIONS, concurrency=1, output_file=path)
    assert server.url in str(e.value) and why in str(e.value)
    assert f"4 of 10 questions answered, kept in {path}" in str(e.value)
    assert [a.index for a in load_answers(path)] == [0, 1, 2, 3]
    assert len(server.asked) < 10  # the rest was not asked for nothing


@pytest.mark.parametrize("url", [f"http://127.0.0.1:{free_port()}", "127.0.0.1:30000", "http://127.0.0.1:port"])
def test_unreachable_server(url, tmp_path):
    with pytest.raises(EvalError, match=url):
        evaluate(url, QUESTIONS, output_file=tmp_path / "run.jsonl")
    assert not (tmp_path / "run.jsonl").exists()


@pytest.mark.parametrize("arguments", [{"concurrency": 0}, {"form": "essay"}], ids=lambda a: next(iter(a)))
def test_arguments_that_cannot_be(arguments):
    with pytest.raises(ValueError, match="can't be"):
        evaluate("http://127.0.0.1:1", QUESTIONS, **arguments)


def test_command_line(stub, tmp_path, data, capsys):
    server, path = stub(below_seven), tmp_path / "run.jsonl"
    argv = ["--base-url", server.url, "--data-path", data, "--form", "completion", "--num-shots", "1"]
    gsm8k_eval.main(
        [*argv, "--num-examples", "9", "--concurrency", "2", "--max-tokens", "7", "--output-file", str(path)]
    )
    out = capsys.readouterr().out
    assert f"9 questions of {data}\ncompletion, 1 shots: score 0.778 (n = 9, 95 % interval 0.453 to 0.937)" in out
    assert len(load_answers(path)) == 9 and server.asked[0][1]["max_tokens"] == 7


def test_command_line_without_a_file(stub, capsys):
    server = stub(lambda prompt: "5")
    gsm8k_eval.main(["--base-url", server.url, "--num-examples", "4", "--split", "held-out", "--data-seed", "3"])
    assert "4 questions of mini_gsm_heldout.jsonl, seed 3" in capsys.readouterr().out
    assert len(server.asked) == 4


@pytest.mark.parametrize("main", [gsm8k_eval.main, few_shot_gsm8k.main])
@pytest.mark.parametrize(
    "flags,message",
    [
        (["--num-shots", "-1"], "must be at least 0, got -1"),
        (["--data-path", "DATA", "--split", "seen"], "leave them out"),
        (["--data-path", "DATA", "--data-seed", "4"], "leave them out"),
        (["--data-path", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--data-path", "BAD"], "bad.jsonl, line 2: not a question"),
    ],
)
def test_bad_flags_and_data(main, flags, message, data, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n{"question": "q"}\n')
    with pytest.raises(SystemExit) as e:
        main([{"DATA": data, "BAD": str(tmp_path / "bad.jsonl")}.get(flag, flag) for flag in flags])
    assert e.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--num-examples", "--concurrency", "--max-tokens"])
def test_counts_start_at_one(flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        gsm8k_eval.main([flag, "0"])
    assert f"{flag}: must be at least 1, got 0" in capsys.readouterr().err


def test_chat_takes_no_shots(capsys):
    with pytest.raises(SystemExit, match="2"):
        gsm8k_eval.main(["--num-shots", "5"])
    assert "chat is zero-shot" in capsys.readouterr().err


def test_run_eval_as_upstreams_tests_call_it(stub, data, tmp_path, capsys):
    server = stub(below_seven)
    args = SimpleNamespace(
        num_shots=1,
        data_path=data,
        num_questions=200,  # more than there are
        max_new_tokens=512,
        parallel=128,
        host="http://127.0.0.1",
        port=server.server_port,
    )
    metrics = run_eval(args)
    assert (metrics["accuracy"], metrics["invalid"], metrics["n"]) == (0.7, 0.1, 10)
    assert metrics["ci_low"] == pytest.approx(0.397, abs=5e-4) and metrics["ci_high"] == pytest.approx(0.892, abs=5e-4)
    assert metrics["output_throughput"] == pytest.approx(30 / metrics["latency"])
    assert metrics["output_file"] is None
    out = capsys.readouterr().out
    assert "Accuracy: 0.700 (n = 10, 95 % interval 0.397 to 0.892)\nInvalid: 0.100\nLatency: " in out
    assert "Output throughput: " in out
    with pytest.raises(ValueError, match="no option top_k, top_p"):
        run_eval(SimpleNamespace(top_p=1, top_k=3))


def test_run_eval_without_data_says_what_it_asks(stub, tmp_path, capsys):
    server, path = stub(lambda prompt: "5"), str(tmp_path / "run.jsonl")
    metrics = run_eval(SimpleNamespace(data_path=None, num_questions=3, port=server.server_port, output_file=path))
    assert "3 questions of mini_gsm_seen.jsonl" in capsys.readouterr().out
    assert metrics["output_file"] == path and len(load_answers(path)) == 3
    assert server.asked[0][1]["text"].count("Question: ") == 6


def run_module(*argv: str, env: dict[str, str] | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *argv],
        env=os.environ | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def lines_in(path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def test_a_server_killed_in_the_middle(stub, tmp_path):
    """Exit code 1, one line that says why, and the answers so far in the file that SGLANG_EVAL_OUTPUT names."""
    path = tmp_path / "run.jsonl"
    server = stub(lambda prompt: "5" if lines_in(path) < 3 else None)
    argv = ["sglang.test.few_shot_gsm8k", "--port", str(server.server_port), "--num-questions", "20", "--parallel", "2"]
    process = run_module(*argv, env={"SGLANG_EVAL_OUTPUT": str(path)})
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"error: {server.url}: no answer from /generate: " in out and "Traceback" not in out
    assert f"({lines_in(path)} of 20 questions answered, kept in {path})" in out
    assert "Accuracy" not in out


def test_ctrl_c_keeps_the_answers(stub, tmp_path):
    path, released = tmp_path / "run.jsonl", threading.Event()

    def reply(_prompt: str) -> str:
        if lines_in(path) == 2:
            released.wait(30)
        return "5"

    server = stub(reply)
    process = run_module(
        *["sglang.test.gsm8k_eval", "--base-url", server.url, "--num-examples", "9", "--concurrency", "1"],
        *["--output-file", str(path)],
    )
    wait_for(lambda: lines_in(path) == 2, 30)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    released.set()
    assert process.returncode == 130 and "Traceback" not in out
    assert len(load_answers(path)) == 2


def test_extra_server_args_reach_a_test_server(monkeypatch):
    """They come after the test's own flags and win over them."""
    monkeypatch.setenv("SGLANG_EXTRA_SERVER_ARGS", "--model-path '/no such folder'")
    server = ServerProcess("sglang.test.fake_server", "--model-path", "/another")
    with pytest.raises(RuntimeError, match="exit code 2:\n.*/no such folder"):
        server.wait_ready()
    server.client.close()
    monkeypatch.setenv("SGLANG_EXTRA_SERVER_ARGS", "--flag 'open")
    with pytest.raises(ValueError, match="SGLANG_EXTRA_SERVER_ARGS=.*No closing quotation"):
        ServerProcess("sglang.test.fake_server")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
