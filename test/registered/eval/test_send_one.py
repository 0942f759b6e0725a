"""send_one by upstream's name and flags: what goes out, what is printed, what ends it."""

import json
import sys

import pytest

from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.send_one import PROMPT, main
from sglang.test.stub_server import stub_server

register_cpu_ci(est_time=3, suite="unit-test-cpu")


def call(*words: str, reply=lambda prompt: "An answer.") -> tuple[str, dict]:
    with stub_server(reply) as server:
        main(["--base-url", server.url, *words])
    return server.asked[-1]


def test_one_prompt(capsys):
    path, body = call()
    assert path == "/generate" and body == {
        "text": PROMPT, "return_logprob": False, "stream": False,
        "sampling_params": {
            "temperature": 0.0, "max_new_tokens": 512, "frequency_penalty": 0.0, "presence_penalty": 0.0,
        },
    }  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "An answer." and [cell.strip() for cell in lines[2].split("|")] == [
        "Latency (s)", "Tokens", "Acc Length", "Speed (token/s)",
    ]  # fmt: skip
    latency, tokens, length, speed = (float(cell) for cell in lines[3].split("|"))
    assert latency > 0 and (tokens, length) == (3, 1) and speed > 0


def test_flags_reach_the_request(capsys):
    _, body = call("--prompt", "Hi", "--json", "--stop", "a", "b", "--max-new-tokens", "7", "--return-logprob",
                   "--batch-size", "3", "--different-prompts", "--frequency-penalty", "1")  # fmt: skip
    assert body["text"] == ["Test case 0: Hi", "Test case 1: Hi", "Test case 2: Hi"] and body["return_logprob"]
    params = body["sampling_params"]
    assert json.loads(params["json_schema"]) == {"type": "object"} and params["stop"] == ["a", "b"]
    assert (params["max_new_tokens"], params["frequency_penalty"]) == (7, 1)
    shown = capsys.readouterr().out
    assert shown.count("An answer.") == 3 and shown.splitlines()[-1].split("|")[1].strip() == "9"
    _, body = call("--random-input-len", "5", "--random-input-vocab-size", "9", "--seed", "1")
    assert len(body["input_ids"]) == 5 and max(body["input_ids"]) < 9
    _, body = call("--random-input-len", "5", "--seed", "1", "--batch-size", "2", "--different-prompts")
    first, second = body["input_ids"]
    assert second == first[1:] + first[:1]


def test_a_stream_is_printed_as_it_comes(capsys):
    call("--stream", "--prompt", "x", reply=lambda prompt: ["An", "An answer", "An answer."])
    assert capsys.readouterr().out.startswith("An answer.\n")


def test_a_profile_is_asked_for(capsys):
    with stub_server(lambda prompt: "x") as server:
        main(["--base-url", server.url, "--profile", "--profile-steps", "3", "--profile-prefix", "p"])
    assert server.asked[0] == ("/start_profile", {"num_steps": 3, "profile_by_stage": False, "profile_prefix": "p"})
    assert "profile into /traces" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--image"], "--image: only text is served"),
        (["--many-images"], "--many-images: only text is served"),
        (["--stream", "--batch-size", "2"], "--stream is for one prompt"),
        (["--batch-size", "0"], "must be at least 1"),
    ],
)
def test_what_can_not_be_asked(words: list[str], says: str, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--port", "9", *words])
    assert ended.value.code == 2 and says in capsys.readouterr().err


def test_no_answer_is_one_line():
    def error(*words: str, reply=lambda prompt: None) -> str:
        with pytest.raises(SystemExit) as ended:
            call(*words, reply=reply)
        return ended.value.code

    assert error().startswith("error: no answer from http://127.0.0.1:")
    body = json.dumps({"message": "too long a prompt"}).encode()
    assert error(reply=lambda prompt: (400, body)) == "error: /generate answers 400: too long a prompt"
    assert error("--stream", reply=lambda prompt: (503, b"busy")) == "error: /generate answers 503: busy"
    assert "in another form than expected" in error(reply=lambda prompt: (200, b"<html>"))
    assert "the answer has no 'meta_info'" in error(reply=lambda prompt: (200, b"{}"))
    with pytest.raises(SystemExit) as ended:
        main(["--port", "9"])
    assert "ConnectError" in ended.value.code


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
