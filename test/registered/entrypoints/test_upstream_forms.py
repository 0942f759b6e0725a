"""Forms of replies, names and errors that programs written for upstream look for."""

import asyncio
import json
import sys
import threading

import msgspec
import openai
import pytest

from sglang.srt.entrypoints.replies import EventStream, event
from sglang.srt.managers.generation import RequestError
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import ServerProcess, wait_for
from sglang.test.tiny_tokenizer import make_model_folder, make_tokenizer

register_cpu_ci(est_time=20, suite="base-a-test-cpu")

TOKENIZER = make_tokenizer()
HELLO = [{"role": "user", "content": "Hello"}]
LONG = "x" * 300


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def says(text: str, **custom) -> dict:
    return {"custom_params": {"output_ids": [*ids_of(text), 1], **custom}}


PREFERRED = '{"max_new_tokens": 5, "n": 2}'


def run_server(tmp_path_factory, *flags: str) -> ServerProcess:
    folder = make_model_folder(tmp_path_factory.mktemp("m"))
    return ServerProcess("sglang.test.fake_server", "--model-path", folder, "--context-length", "256", *flags)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with run_server(tmp_path_factory) as server:
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
        with server.client.stream("POST", path, json={**body, "stream": True}) as reply:
            lines = [line for line in reply.iter_lines() if line]
        assert lines.pop() == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    return events


SAMPLING = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "seed": None, "stop": None, "n": 1, "logit_bias": None}
OWN = {
    "min_tokens": 0, "regex": None, "ebnf": None, "stop_token_ids": None, "stop_regex": None, "no_stop_trim": False,
    "ignore_eos": False, "skip_special_tokens": True, "lora_path": None, "session_id": None, "session_params": None,
    "response_format": None, "custom_params": None, "custom_logit_processor": None, "images_config": None,
    "bootstrap_host": None, "bootstrap_port": None, "bootstrap_room": None, "routed_dp_rank": None, "rid": None,
    "disagg_prefill_dp_rank": None, "data_parallel_rank": None, "extra_key": None, "cache_salt": None,
    "ngram_corpus_id": None, "priority": None, "return_hidden_states": False, "return_routed_experts": False,
    "routed_experts_start_len": 0, "return_cached_tokens_details": False, "return_token_ids": False, "user": None,
    "stream": False, "stream_options": None,
}  # fmt: skip
# What upstream's request models hold when a client says nothing, by endpoint: what is needed, the rest.
DEFAULTS = {
    "/v1/chat/completions": (
        {"messages": HELLO, "max_tokens": 4},
        SAMPLING | OWN | {
            "model": "default", "logprobs": False, "top_logprobs": None, "max_completion_tokens": None,
            "temperature": None, "top_p": None, "top_k": None, "min_p": None, "repetition_penalty": None,
            "tools": None, "tool_choice": "none", "parallel_tool_calls": True, "return_prompt_token_ids": False,
            "return_meta_info": False, "reasoning_effort": None, "task": None, "continue_final_message": False,
            "separate_reasoning": True, "stream_reasoning": True, "chat_template_kwargs": None,
            "max_dynamic_patch": None, "min_dynamic_patch": None, "use_audio_in_video": False, "input_ids": None,
        },
    ),
    "/v1/completions": (
        {"prompt": "a b c"},
        SAMPLING | OWN | {
            "model": "default", "best_of": None, "echo": False, "logprobs": None, "max_tokens": 16, "suffix": None,
            "temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "json_schema": None, "custom_labels": None,
            "repetition_penalty": 1.0,
        },
    ),
    "/v1/responses": (
        {"input": "Hello", "max_output_tokens": 4},
        {
            "background": False, "include": None, "instructions": None, "max_tool_calls": None, "metadata": None,
            "model": None, "parallel_tool_calls": True, "previous_response_id": None, "reasoning": None,
            "service_tier": "auto", "store": True, "stream": False, "temperature": None, "text": None,
            "tool_choice": "auto", "tools": [], "top_logprobs": 0, "top_p": None, "truncation": "disabled",
            "user": None, "chat_template_kwargs": None, "request_id": "resp_1", "session_id": None, "priority": 0,
            "extra_key": None, "cache_salt": None, "ngram_corpus_id": None, "frequency_penalty": 0.0,
            "presence_penalty": 0.0, "stop": None, "top_k": None, "min_p": None, "repetition_penalty": None,
        },
    ),
}  # fmt: skip


def answer_of(reply: dict) -> list:
    """Without ids and times."""
    return [c | {"message": None} if "text" not in c else c for c in reply.get("choices", [])] or [
        part["text"] for item in reply["output"] for part in item["content"]
    ]


@pytest.mark.parametrize("path", DEFAULTS)
def test_every_name_passes_with_its_default(post, server, path):
    """Typed clients send all of them; the answer is the one without."""
    needed, defaults = DEFAULTS[path]
    bare = answer_of(post(path, **needed))
    params = msgspec.convert(server.internal_state()["last_request"], SamplingParams)
    for fields in (defaults, dict.fromkeys(defaults)):
        assert answer_of(post(path, **fields | needed)) == bare
        assert msgspec.convert(server.internal_state()["last_request"], SamplingParams) == params


def test_a_top_of_no_tokens_needs_no_log_probabilities(post):
    body = {"messages": HELLO, "max_tokens": 1, "top_logprobs": 0}
    assert post("/v1/chat/completions", **body)["choices"][0]["logprobs"] is None
    assert post("/v1/chat/completions", 400, **body | {"top_logprobs": 1})["message"].startswith("top_logprobs needs")


def test_the_responses_api_takes_upstreams_sampling_parameters(post, server):
    values = {"frequency_penalty": 0.5, "presence_penalty": -0.5, "min_p": 0.1, "repetition_penalty": 1.5, "top_k": 7}
    post("/v1/responses", input="Hello", max_output_tokens=2, **values)
    got = server.internal_state()["last_request"]
    assert {name: got[name] for name in values} == values


def test_roles_are_read_in_capitals_too(post):
    assert post("/v1/chat/completions", messages=[{"role": "User", "content": "Hello"}], max_tokens=1)["choices"]


def test_the_routers_fields_pass(post):
    """What sglang-router adds to a request for /generate."""
    added = {"model": None, "background": False, "no_logs": False, "return_bytes": False, "return_entropy": False}
    assert post("/generate", text="a", sampling_params={"max_new_tokens": 1}, **added)["output_ids"]
    assert post("/generate", text="a", sampling_params={"max_new_tokens": 1}, model="any", routing_key="k")[
        "output_ids"
    ]
    assert post("/generate", 400, text="a", no_logs=True)["message"] == "no_logs is not supported"
    chat = {"session_id": "s", "return_meta_info": False, "input_ids": None, "bootstrap_room": None, "task": None}
    assert post("/v1/chat/completions", messages=HELLO, max_tokens=1, **chat)["choices"]


# ---- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"text": ["a", "b"], "rid": ["x", "x"]}),
        ("/generate", {"text": "a", "guided_json": {"type": "object"}}),
        ("/generate", {"text": LONG, "stream": True}),
        ("/v1/completions", {"prompt": "a", "n": 0}),
        ("/v1/chat/completions", {"messages": []}),
    ],
)
def test_errors_have_both_of_upstreams_forms(post, path, body):
    reply = post(path, 400, **body)
    assert reply["object"] == "error" and reply["code"] == 400
    assert reply["error"] == {k: reply[k] for k in ("message", "type", "param", "code")}
    assert reply["error"]["message"]


def test_a_duplicate_name_is_called_so(post, server):
    assert "Duplicate request ID" in post("/generate", 400, text=["a", "b"], rid=["x", "x"])["error"]["message"]
    slow = {"max_new_tokens": 200, "custom_params": {"delay": 0.05}}
    body = {"text": "a", "rid": "d", "sampling_params": slow}
    asking = threading.Thread(target=lambda: server.client.post("/generate", json=body))
    asking.start()
    wait_for(lambda: server.internal_state()["running"])
    assert "Duplicate request ID" in post("/generate", 400, text="a", rid="d")["error"]["message"]
    assert post("/abort_request", rid="d") == {"aborted": 1}
    asking.join()


def test_an_error_inside_a_stream_has_message_type_and_code():
    async def events():
        yield event({"text": "begun"})
        raise RequestError("out of memory", status=503)

    sent = []

    async def receive() -> dict:
        await asyncio.Event().wait()

    async def send(message: dict) -> None:
        sent.append(message.get("body", b""))

    asyncio.run(EventStream(events())({"type": "http"}, receive, send))
    begun, error, done = b"".join(sent).decode().strip().split("\n\n")
    fields = {"message": "out of memory", "type": "ServiceUnavailableError", "param": None, "code": 503}
    assert json.loads(error.removeprefix("data: ")) == {"error": fields}
    assert "begun" in begun and done == "data: [DONE]"


def test_too_long_a_prompt_is_said_in_the_words_agents_look_for(post, server):
    sentence = "The input (301 tokens) is longer than the model's context length (256 tokens)."
    assert post("/generate", 400, text=LONG)["message"].startswith(sentence)
    assert post("/v1/completions", 400, prompt=LONG)["message"].startswith(sentence)
    chat = post("/v1/chat/completions", 400, messages=[{"role": "user", "content": LONG}], stream=True)
    assert "is longer than the model's context length (256 tokens)." in chat["message"]
    assert "at most 255 are possible" in chat["message"]


def test_a_chat_is_tokenized_as_it_would_be_sent(post, server):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    begun = [*HELLO, {"role": "assistant", "content": "Well "}]
    for chat in (
        {"messages": HELLO},
        {"messages": HELLO, "tools": tools},
        {"messages": HELLO, "tools": tools, "tool_choice": "none"},
        {"messages": begun, "continue_final_message": True, "model": "any"},
        {"messages": HELLO, "chat_template_kwargs": {"shout": "HEY"}},
    ):
        post("/v1/chat/completions", max_tokens=1, **chat)
        ids = server.internal_state()["last_request"]["input_ids"]
        for path in ("/tokenize", "/v1/tokenize"):
            assert post(path, **chat) == {"tokens": ids, "count": len(ids), "max_model_len": 256}
    many = [{"role": role, "content": "x"} for _ in range(20) for role in ("user", "assistant")]
    tokens = post("/tokenize", messages=many, add_generation_prompt=False)["tokens"]  # written by another process
    turns = "<|turn>user\nx<turn|>\n<|turn>model\nx<turn|>\n"
    assert TOKENIZER.decode(tokens, skip_special_tokens=False) == "<bos>" + turns * 20
    assert post("/tokenize", 400)["message"] == "exactly one of prompt and messages must be given"
    assert post("/tokenize", 400, prompt="a", messages=HELLO)["message"].startswith("exactly one")
    assert post("/tokenize", 400, messages=[])["message"] == "messages is empty"
    assert "messages[0].role" in post("/tokenize", 400, messages=[{"role": "x"}])["message"]


# ---- names ------------------------------------------------------------------------------------------------------


def test_names_of_a_batch_come_from_one_name(post):
    one = {"max_new_tokens": 1}

    def names(text, rid, n: int = 1) -> list[str]:
        answers = post("/generate", text=text, rid=rid, sampling_params={**one, "n": n})
        return [answer["meta_info"]["id"] for answer in ([answers] if isinstance(answers, dict) else answers)]

    assert names(["a", "b"], "q") == ["q_0", "q_1"]
    assert names(["a"], "q") == names("a", "q") == ["q"]
    assert names(["a", "b"], ["y", "z"]) == ["y", "z"]
    assert names("a", "q", n=2) == ["q-0", "q-1"]
    assert names(["a", "b"], "q", n=2) == ["q_0-0", "q_0-1", "q_1-0", "q_1-1"]


def test_a_replys_id_is_the_requests_name(post, events):
    assert post("/v1/chat/completions", messages=HELLO, max_tokens=1, rid="mine")["id"] == "mine"
    assert post("/v1/completions", prompt="a", max_tokens=1, rid="mine")["id"] == "mine"
    assert post("/v1/completions", prompt=["a", "b"], max_tokens=1, rid="mine")["id"] == "mine_0"
    assert post("/v1/completions", prompt=["a", "b"], max_tokens=1, rid=["y", "z"])["id"] == "y"
    assert {e["id"] for e in events("/v1/chat/completions", messages=HELLO, max_tokens=3, rid="mine")} == {"mine"}
    assert post("/v1/chat/completions", messages=HELLO, max_tokens=1)["id"].startswith("chatcmpl-")
    assert post("/v1/completions", prompt="a", max_tokens=1)["id"].startswith("cmpl-")


def test_a_stream_can_be_aborted_by_the_id_that_its_chunks_show(server, post):
    body = {"messages": HELLO, "stream": True, **says("x" * 200, delay=0.05)}
    with server.client.stream("POST", "/v1/chat/completions", json=body) as reply:
        lines = (line for line in reply.iter_lines() if line)
        name = json.loads(next(lines)[6:])["id"]
        assert post("/abort_request", rid=name) == {"aborted": 1}
        rest = list(lines)
    assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "abort"


# ---- stops ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("trim", [True, False])
def test_a_stop_string_may_be_a_special_token(post, events, skip, trim):
    """Its text may not be in the answer, it stops all the same and is named as the client wrote it."""
    turn = TOKENIZER.token_to_id("<|turn>")
    custom = {"output_ids": [*ids_of("one"), turn, *ids_of("two")]}
    params = {"max_new_tokens": 50, "stop": ["zzz", "<|turn>"], "custom_params": custom}
    params |= {"skip_special_tokens": skip, "no_stop_trim": not trim}
    want = "one" if skip or trim else "one<|turn>"
    for answer in (
        post("/generate", text="a", sampling_params=params),
        events("/generate", text="a", sampling_params=params)[-1],
    ):
        assert answer["text"] == want
        assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": "<|turn>"}
        assert answer["output_ids"][-1] == turn
    chat = post("/v1/chat/completions", messages=HELLO, stop="<|turn>", custom_params=custom)["choices"][0]
    assert (chat["message"]["content"], chat["matched_stop"], chat["finish_reason"]) == ("one", "<|turn>", "stop")


# ---- streams ----------------------------------------------------------------------------------------------------


def test_every_delta_names_the_thought(server, events):
    for piece in events("/v1/chat/completions", messages=HELLO, n=2, **says("two words")):
        assert piece["choices"][0]["delta"]["reasoning_content"] is None
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        stream = client.chat.completions.create(model="m", messages=HELLO, stream=True, extra_body=says("a b"))
        assert all(chunk.choices[0].delta.reasoning_content is None for chunk in stream)


def test_continuous_usage_begins_with_the_first_text(events):
    chunks = events(
        "/v1/chat/completions", messages=HELLO, stream_options={"continuous_usage_stats": True}, **says("abc")
    )
    assert "role" in chunks[0]["choices"][0]["delta"] and "usage" not in chunks[0]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks[1:]]
    assert counts == sorted(counts) and counts[0] >= 1 and counts[-1] == 4


def test_null_max_new_tokens_is_the_rest_of_the_context(post):
    answer = post("/generate", input_ids=[10, 11], sampling_params={"max_new_tokens": None})
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 254}
    assert post("/generate", input_ids=[10, 11])["meta_info"]["completion_tokens"] == 128


def test_of_two_tokens_with_one_text_the_better_is_told(post):
    """The fake's best are ids 10, 11, ...: bytes that are no characters by themselves, all with the text U+FFFD."""
    shown = {TOKENIZER.decode([i]) for i in (200, 201)}
    assert shown == {"\ufffd"}
    choice = post("/v1/completions", prompt=[200], max_tokens=2, logprobs=5, echo=True)["choices"][0]
    tops = choice["logprobs"]["top_logprobs"]
    assert tops[0] and all(list(top.values()) == sorted(top.values(), reverse=True) for top in tops)
    assert all(max(top.values()) == -0.25 for top in tops)


def test_preferred_sampling_params_fill_what_is_left_out_of_generate(tmp_path_factory):
    with run_server(tmp_path_factory, "--preferred-sampling-params", PREFERRED) as server:

        def ask(**body) -> list[int]:
            answers = server.client.post("/generate", json={"input_ids": [10, 11], **body}).json()
            return [a["meta_info"]["completion_tokens"] for a in (answers if isinstance(answers, list) else [answers])]

        assert ask() == [5, 5]
        assert ask(sampling_params={"n": 1}) == [5]
        assert ask(sampling_params={"n": None, "max_new_tokens": 3}) == [3, 3]
        answer = server.client.post("/v1/completions", json={"prompt": "a"}).json()
        assert len(answer["choices"]) == 1 and answer["usage"]["completion_tokens"] == 16


# ---- other origins ----------------------------------------------------------------------------------------------

PREFLIGHT = {
    "Origin": "https://page.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


@pytest.mark.parametrize(
    ("flags", "origin", "allowed"),
    [
        ((), "https://page.example", "*"),
        (
            ("--allowed-origins", "https://page.example, https://b.example"),
            "https://page.example",
            "https://page.example",
        ),
        (("--allowed-origins", "https://page.example"), "https://other.example", None),
        (("--allowed-origins", "none"), "https://page.example", None),
    ],
)
def test_pages_of_other_origins(tmp_path_factory, flags, origin, allowed):
    with run_server(tmp_path_factory, "--api-key", "key", *flags) as server:
        headers = PREFLIGHT | {"Origin": origin}
        preflight = server.client.options("/v1/chat/completions", headers=headers)
        assert preflight.headers.get("access-control-allow-origin") == allowed
        assert (preflight.status_code == 200) == (allowed is not None)
        if allowed is not None:
            assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        for key, status in (("key", 200), ("wrong", 401)):  # the error, too, can be read by the page
            headers = {"Origin": origin, "Authorization": f"Bearer {key}"}
            reply = server.client.get("/v1/models", headers=headers)
            assert (reply.status_code, reply.headers.get("access-control-allow-origin")) == (status, allowed)


def test_unread_variables_are_named_at_start(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SGLANG_REQ_WAITING_TIMEOUT", "5")
    with run_server(tmp_path_factory) as server:
        lines = [line for line in server.output().splitlines() if "SGLANG_REQ_WAITING_TIMEOUT" in line]
    assert len(lines) == 1 and "have no effect here" in lines[0]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
