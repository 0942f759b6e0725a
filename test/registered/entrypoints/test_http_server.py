"""The HTTP surface against a scheduler without a model: answers, streams, bad input, and clients that leave."""

import json
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import ServerProcess, wait_for
from sglang.test.tiny_tokenizer import make_model_folder, make_tokenizer

register_cpu_ci(est_time=10, suite="base-a-test-cpu")

FAKE_SERVER = "sglang.test.fake_server"
TOKENIZER = make_tokenizer()


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def says(text: str, **custom) -> dict:
    """Sampling parameters with which the fake scheduler answers this text."""
    ids = ids_of(text)
    return {"max_new_tokens": len(ids), "custom_params": {"output_ids": ids, **custom}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = make_model_folder(tmp_path_factory.mktemp("m"))
    with ServerProcess(
        FAKE_SERVER, "--model-path", folder, "--context-length", "512", "--log-level", "warning"
    ) as server:
        yield server


@pytest.fixture
def post(server):
    def post(path: str, status: int = 200, **body):
        reply = server.client.post(path, json=body)
        assert reply.status_code == status, reply.text
        return reply.json()

    return post


@pytest.fixture
def events(server):
    def events(path: str, **body) -> list[dict]:
        """The events of a stream, which must end with [DONE]."""
        with server.client.stream("POST", path, json={**body, "stream": True}) as reply:
            assert reply.status_code == 200, reply.read()
            assert reply.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in reply.iter_lines() if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line[6:]) for line in lines[:-1]]

    return events


# ---- /generate ----------------------------------------------------------------------------------------------------


def test_text_and_ids(post):
    answer = post("/generate", text="x", sampling_params=says("the answer"), rid="my-1")
    assert (answer["text"], answer["output_ids"]) == ("the answer", ids_of("the answer"))
    meta = answer["meta_info"]
    assert meta["finish_reason"] == {"type": "length", "length": len(ids_of("the answer"))}
    assert (meta["id"], meta["prompt_tokens"], meta["completion_tokens"]) == ("my-1", 2, len(ids_of("the answer")))
    assert 0 <= meta["e2e_latency"] < 5
    answer = post("/generate", input_ids=ids_of("ab"), sampling_params={"max_new_tokens": 5})
    assert answer["text"] == "ababa"


def test_end_of_text_is_a_stop(post):
    answer = post("/generate", input_ids=[*ids_of("hi"), 1], sampling_params={"max_new_tokens": 50})
    assert (answer["text"], answer["output_ids"][-1]) == ("hi", 1)
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": 1}
    answer = post("/generate", input_ids=[*ids_of("hi"), 1], sampling_params={"max_new_tokens": 6, "ignore_eos": True})
    assert answer["text"] == "hihi"


def test_batches_keep_their_order_and_may_differ(post):
    answers = post(
        "/generate",
        text=["a", "b", "c"],
        sampling_params=[says("one"), says("second"), says("3")],
        rid=["r1", "r2", "r3"],
    )
    assert [a["text"] for a in answers] == ["one", "second", "3"]
    assert [a["meta_info"]["id"] for a in answers] == ["r1", "r2", "r3"]
    answers = post("/generate", input_ids=[ids_of("a"), ids_of("b")], sampling_params={"max_new_tokens": 2})
    assert [a["text"] for a in answers] == ["aa", "bb"]
    assert len(post("/generate", text=["a"], sampling_params=says("x"))) == 1


def test_n_answers_have_their_own_seeds(post, server):
    answers = post("/generate", text="a", rid="nn", sampling_params={**says("x"), "n": 3, "sampling_seed": 7})
    assert [a["text"] for a in answers] == ["x", "x", "x"]
    assert [a["meta_info"]["id"] for a in answers] == ["nn-0", "nn-1", "nn-2"]
    last = server.internal_state()["last_request"]
    assert (last["sampling_seed"], last.get("n", 1)) == (9, 1)


def test_stream_is_cumulative_and_whole(events):
    text = "naïve €5 日本 😀 the end"
    pieces = events("/generate", text="q", sampling_params=says(text, delay=0.002))
    texts = [p["text"] for p in pieces]
    assert texts[-1] == text
    assert all(b.startswith(a) for a, b in zip(texts, texts[1:], strict=False))
    assert not any("\ufffd" in t for t in texts)
    assert len(pieces) > 10
    assert [p["meta_info"]["finish_reason"] is None for p in pieces] == [True] * (len(pieces) - 1) + [False]
    assert pieces[-1]["output_ids"] == ids_of(text)


def test_stream_interval_of_the_request(events):
    pieces = events("/generate", text="q", sampling_params={**says("0123456789" * 2, delay=0.01), "stream_interval": 8})
    assert [len(p["output_ids"]) for p in pieces] == [1, 9, 17, 20]


def test_batch_stream_names_the_index(events):
    params = [says("ab", delay=0.01), says("cde", delay=0.01)]
    last = {}
    for piece in events("/generate", text=["x", "y"], sampling_params=params):
        last[piece["index"]] = piece["text"]
    assert last == {0: "ab", 1: "cde"}


def test_stop_string_never_shows(events, post, server):
    params = {**says("one two stop three", delay=0.003, label="stopper"), "stop": ["two stop", "zzz"]}
    pieces = events("/generate", text="q", sampling_params=params)
    assert pieces[-1]["text"] == "one "
    assert pieces[-1]["meta_info"]["finish_reason"] == {"type": "stop", "matched": "two stop"}
    assert not any("t" in p["text"] for p in pieces), "the start of the stop string was shown"
    wait_for(lambda: "stopper" in server.internal_state()["stopped"])
    assert server.internal_state()["running"] == []
    answer = post("/generate", text="q", sampling_params={**params, "no_stop_trim": True})
    assert answer["text"] == "one two stop"
    answer = post("/generate", text="q", sampling_params={**says("a 17 b"), "stop_regex": r"\d+ "})
    assert (answer["text"], answer["meta_info"]["finish_reason"]["matched"]) == ("a ", r"\d+ ")


def test_logprobs(post):
    answer = post(
        "/generate",
        input_ids=ids_of("pq r"),
        sampling_params={"max_new_tokens": 2},
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=2,
        token_ids_logprob=[5, 6],
        return_text_in_logprobs=True,
    )
    meta, (p, q, space, r) = answer["meta_info"], ids_of("pq r")
    assert meta["output_token_logprobs"] == [[-1.0, p, "p"], [-2.0, q, "q"]]
    assert meta["input_token_logprobs"] == [[None, p, "p"], [-2.0, q, "q"], [-3.0, space, " "], [-4.0, r, "r"]]
    assert [[row[:2] for row in top] for top in meta["output_top_logprobs"]] == [[[-0.25, 10], [-0.5, 11]]] * 2
    assert meta["output_token_ids_logprobs"] == [[[-5.0, 5, "<turn|>"], [-6.0, 6, "\x00"]]] * 2
    plain = post("/generate", input_ids=[p], sampling_params={"max_new_tokens": 1}, return_logprob=True)["meta_info"]
    assert plain["output_token_logprobs"] == [[-1.0, p, None]]
    assert "input_token_logprobs" not in plain


# ---- bad input ----------------------------------------------------------------------------------------------------

OK = {"text": "a", "sampling_params": {"max_new_tokens": 1}}


@pytest.mark.parametrize(
    ("body", "says_what"),
    [
        ({}, "exactly one of text and input_ids"),
        ({"text": "a", "input_ids": [5]}, "exactly one of text and input_ids"),
        ({"text": 5}, "text: expected `str | array | null`, got `int`"),
        ({"text": []}, "text is an empty list"),
        ({"text": ["a", 5]}, "text[1]: expected `str`, got `int`"),
        ({"input_ids": []}, "input_ids is an empty list"),
        ({"input_ids": [[5], []]}, "the prompt has no tokens"),
        ({"input_ids": [5, [6]]}, "input_ids mixes int and list"),
        ({"input_ids": [5, "6"]}, "input_ids"),
        ({"input_ids": [5, 1024]}, "token id 1024; ids go from 0 to 1023"),
        ({"input_ids": [-1]}, "token id -1"),
        ({"input_ids": [1e30]}, "input_ids"),
        ({"input_ids": [10**30]}, "input_ids"),
        ({"input_ids": [5] * 512}, "The input (512 tokens) is longer than the model's context length (512 tokens)."),
        ({**OK, "sampling_params": {"temprature": 1}}, "temprature"),
        ({**OK, "sampling_params": {"temperature": "hot"}}, "temperature"),
        ({**OK, "sampling_params": {"temperature": -1}}, "temperature"),
        ({**OK, "sampling_params": {"top_p": 1.5}}, "top_p"),
        ({**OK, "sampling_params": {"max_new_tokens": -1}}, "max_new_tokens"),
        ({**OK, "sampling_params": {"max_new_tokens": 1e300}}, "max_new_tokens"),
        ({**OK, "sampling_params": {"stop": ["x"] * 1000}}, "stop"),
        ({**OK, "sampling_params": {"stop": 7}}, "stop"),
        ({**OK, "sampling_params": {"stop_regex": "("}}, "stop_regex"),
        ({**OK, "sampling_params": {"stop_regex": "a*"}}, "matches the empty text"),
        ({**OK, "sampling_params": {"stop_regex": "(((a{1000}){1000}){1,1000})"}}, "multiply to more than 10000"),
        ({**OK, "sampling_params": {"n": 0}}, "n"),
        ({**OK, "sampling_params": {"n": 1000}}, "n"),
        ({**OK, "sampling_params": {"logit_bias": {str(i): 1 for i in range(1024)} | {"x": 1}}}, "logit_bias"),
        ({**OK, "sampling_params": {"json_schema": "{"}}, "json_schema is no JSON"),
        ({**OK, "sampling_params": {"structural_tag": "{}"}}, "structural_tag has neither a format"),
        ({**OK, "sampling_params": {"regex": "a", "ebnf": "b"}}, "regex and ebnf are both given"),
        ({**OK, "sampling_params": [{}]}, "sampling_params is a list, but there is one prompt"),
        ({"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params has 1 entries for 2 prompts"),
        ({"text": ["a", "b"], "rid": ["one"]}, "rid has 1 entries for 2 prompts"),
        ({"text": ["a", "b"], "rid": ["x", "x"]}, "rid 'x' is in use"),
        ({"text": ["a"] * 5000}, "5000 generations"),
        ({**OK, "rid": "x" * 300}, "rid has 300 characters"),
        ({**OK, "rid": ""}, "rid has 0 characters"),
        ({**OK, "guided_json": {}, "guided_regex": "a+"}, "guided_regex is not supported: constrained output"),
        ({**OK, "stream": "yes"}, "stream: expected `bool | null`, got `str`"),
        ({**OK, "top_logprobs_num": 100000}, "100000 top log-probabilities; 0 to 128"),
        ({**OK, "top_logprobs_num": -1}, "-1 top log-probabilities"),
        ({**OK, "logprob_start_len": -5}, "logprob_start_len is -5"),
        ({**OK, "logprob_start_len": 50}, "behind the prompt's end at 2 tokens"),
        ({**OK, "token_ids_logprob": [9999]}, "token_ids_logprob has token id 9999"),
        ({**OK, "token_ids_logprob": [1] * 2000}, "2000 ids"),
        ({**OK, "image_data": "x.png"}, "image_data is not supported"),
        ({**OK, "lora_path": "x"}, "lora_path is not supported"),
    ],
)
def test_bad_requests_get_400_and_a_reason(server, body, says_what):
    reply = server.client.post("/generate", json=body)
    assert reply.status_code == 400, reply.text
    error = reply.json()
    assert (error["object"], error["type"], error["code"]) == ("error", "BadRequestError", 400)
    assert says_what in error["message"], error["message"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("content", "says_what"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"text": "a"', "not valid JSON"),
        (b"text=a", "not valid JSON"),
        (b'{"text": "\xff"}', "not valid JSON"),
        (b'{"text": "\\ud800"}', "not valid JSON: a text in it holds half of a surrogate pair"),
        (b'{"text": NaN}', "not valid JSON"),
        (b"[]", "expected `object`"),
        (b'{"input_ids": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ""),
        (b'{"image_data": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deeply"),
        (b'{"image_data": ' + b'{"a":' * 40_000 + b"1" + b"}" * 40_001, "nested too deeply"),
    ],
)
def test_bodies_that_are_no_requests(server, content, says_what):
    reply = server.client.post("/generate", content=content)
    assert reply.status_code == 400
    assert says_what in reply.json()["message"].lower() or says_what in reply.json()["message"]


def test_huge_bodies_are_413_however_they_come(server):
    big = b'{"text": "' + b"a" * 10_000_000 + b'"}'
    reply = server.client.post("/generate", content=big)
    assert reply.status_code == 413
    assert "10000000 bytes" in reply.json()["message"]

    def chunks():
        for at in range(0, len(big), 1 << 16):
            yield big[at : at + (1 << 16)]

    try:  # no length is announced: chunked
        assert server.client.post("/generate", content=chunks()).status_code == 413
    except httpx.WriteError:
        pass  # it hung up on us mid-body, which is as good
    assert server.client.get("/health").status_code == 200


def test_large_but_legal_prompt_says_both_numbers(server):
    reply = server.client.post("/generate", json={"text": "a " * 1_000})
    assert reply.status_code == 400
    assert "The input (1002 tokens) is longer than the model's context length (512 tokens)" in reply.json()["message"]
    reply = server.client.post("/generate", json={"text": "a " * 1_000_000})  # can't fit, and is not tokenized
    assert "The input (at least 285715 tokens: 2000000 characters) is longer than" in reply.json()["message"]


def test_wrong_routes_have_the_same_error_form(server):
    for method, path, status in (
        ("GET", "/nope", 404),
        ("GET", "/metrics", 404),
        ("GET", "/generate", 405),
        ("GET", "/v1/models/other", 404),
    ):
        reply = server.client.request(method, path)
        assert (reply.status_code, reply.json()["code"]) == (status, status)
    reply = server.client.get("/flush_cache", params={"timeout": "soon"})
    assert (reply.status_code, reply.json()["param"]) == (400, "timeout")


def test_refusal_of_the_scheduler_has_its_status(post, server):
    params = {"custom_params": {"refuse": "the queue is full", "status": 503}}
    for stream in (False, True):  # a stream's status waits for its first event
        error = post("/generate", 503, text="a", sampling_params=params, stream=stream)
        assert error["message"] == "the queue is full"


def test_duplicate_rid_is_refused_while_it_runs_only(post, server):
    slow = {"max_new_tokens": 200, "custom_params": {"delay": 0.05, "label": "dup"}}
    thread = threading.Thread(target=lambda: post("/generate", text="a", rid="dup", sampling_params=slow))
    thread.start()
    wait_for(lambda: "dup" in server.internal_state()["running"])
    assert "in use" in post("/generate", 400, text="a", rid="dup", sampling_params=says("x"))["message"]
    assert post("/abort_request", rid="dup") == {"aborted": 1}
    thread.join()
    assert post("/generate", text="a", rid="dup", sampling_params=says("x"))["text"] == "x"


# ---- leaving and aborting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_leaves_frees_its_request(server, stream):
    label = f"leaver-{stream}"
    body = {"text": "a", "stream": stream}
    body["sampling_params"] = {"max_new_tokens": 400, "custom_params": {"delay": 0.05, "label": label}, "n": 2}
    data = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as s:
        s.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        wait_for(lambda: server.internal_state()["running"] == [label] * 2)
    wait_for(lambda: server.internal_state()["aborted"].count(label) == 2)
    assert server.internal_state()["running"] == []


def test_abort_request_answers_the_client(server, post):
    answers = []
    params = {"max_new_tokens": 400, "custom_params": {"delay": 0.02}}

    def ask(rid: str) -> None:
        answers.append(post("/generate", text="abc", rid=rid, sampling_params=params))

    threads = [threading.Thread(target=ask, args=(f"ab{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(server.internal_state()["running"]) == 3)
    assert post("/abort_request", rid="ab0") == {"aborted": 1}
    assert post("/abort_request", rid="unknown") == {"aborted": 0}
    wait_for(lambda: len(answers) == 1)
    assert post("/abort_request", abort_all=True) == {"aborted": 2}
    for thread in threads:
        thread.join(5)
    reasons = [a["meta_info"]["finish_reason"] for a in answers]
    assert [r["type"] for r in reasons] == ["abort"] * 3
    assert reasons[0]["message"] == "aborted by /abort_request"
    assert "give rid" in post("/abort_request", 400)["message"]


# ---- information and control --------------------------------------------------------------------------------------


def test_information(server):
    client = server.client
    assert client.get("/health").status_code == 200
    assert client.get("/health_generate").status_code == 200
    info = client.get("/server_info").json()
    assert (info["context_length"], info["max_total_num_tokens"], info["model_type"]) == (512, 65536, "fake")
    assert info["api_key"] is None
    assert isinstance(info["internal_states"], list)
    assert info["version"]
    assert set(client.get("/get_server_info").json()) == set(info)
    model = client.get("/model_info").json()
    assert model["is_generation"] is True
    assert model == client.get("/get_model_info").json()
    name = model["served_model_name"]
    assert client.get("/v1/models").json()["data"][0]["id"] == name
    assert client.get(f"/v1/models/{name}").json()["max_model_len"] == 512
    assert "/get_server_info is an old name" in server.output()


def test_flush_cache(server, post):
    for method in ("GET", "POST"):
        reply = server.client.request(method, "/flush_cache")
        assert (reply.status_code, reply.text) == (200, "Cache flushed.\n")
    params = {"max_new_tokens": 20, "custom_params": {"delay": 0.02}}
    thread = threading.Thread(target=lambda: post("/generate", text="a", sampling_params=params))
    thread.start()
    wait_for(lambda: server.internal_state()["running"])
    reply = server.client.post("/flush_cache")
    assert (reply.status_code, reply.text) == (400, "Cache not flushed: 1 requests are running.\n")
    assert server.client.post("/flush_cache", params={"timeout": 10}).status_code == 200
    thread.join()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_flush_waits_and_ends_with_its_client(server, post, method):
    def pending() -> int:
        return server.internal_state()["flushes"]

    def flush(seconds: float, **options):
        return server.client.request(method, "/flush_cache", params={"timeout": seconds}, **options)

    slow = {"max_new_tokens": 400, "ignore_eos": True, "custom_params": {"delay": 0.1}}
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(post, "/generate", text="a", sampling_params=slow, rid="f")
        wait_for(lambda: server.internal_state()["running"])
        reply = flush(0.3)
        assert (reply.status_code, reply.text) == (400, "Cache not flushed: 1 requests are running.\n")
        with pytest.raises(httpx.ReadTimeout):
            flush(3600, timeout=0.5)
        wait_for(lambda: pending() == 0)
        flushed = pool.submit(flush, 60)
        wait_for(lambda: pending() == 1)
        post("/abort_request", rid="f")
        assert flushed.result().text == "Cache flushed.\n"
        running.result()
    assert pending() == 0


def test_tokenize_and_back(post):
    for path in ("", "/v1"):
        reply = post(f"{path}/tokenize", prompt="the €")
        assert reply["tokens"] == [2, *ids_of("the €")]
        assert (reply["count"], reply["max_model_len"]) == (len(reply["tokens"]), 512)
        assert post(f"{path}/detokenize", tokens=reply["tokens"]) == {"text": "the €"}
    both = post("/tokenize", prompt=["a", "b c"], add_special_tokens=False)
    assert (both["tokens"], both["count"]) == ([ids_of("a"), ids_of("b c")], [1, 3])
    assert post("/detokenize", tokens=both["tokens"]) == {"text": ["a", "b c"]}
    assert post("/detokenize", tokens=[2, 5], skip_special_tokens=False) == {"text": "<bos><turn|>"}
    assert post("/detokenize", tokens=[]) == {"text": ""}
    assert "token id 5000" in post("/detokenize", 400, tokens=[5000])["message"]
    assert "exactly one of prompt and messages" in post("/tokenize", 400)["message"]


def test_many_streams_at_once(server):
    """64 connections, each answer whole and its own."""
    texts: dict[int, str] = {}

    def ask(i: int) -> None:
        with httpx.Client(base_url=server.url, timeout=60.0) as client:
            body = {"text": "q", "stream": True, "sampling_params": says(f"answer {i} " * 5, delay=0.001)}
            with client.stream("POST", "/generate", json=body) as reply:
                lines = [line for line in reply.iter_lines() if line.startswith("data: {")]
            texts[i] = json.loads(lines[-1][6:])["text"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {i: f"answer {i} " * 5 for i in range(64)}
    assert server.internal_state()["running"] == []


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
