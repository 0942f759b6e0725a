"""The OpenAI endpoints as the openai client sees them, and what they refuse."""

import sys
import threading

import openai
import pytest

from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import ServerProcess
from sglang.test.tiny_tokenizer import make_model_folder, make_tokenizer

register_cpu_ci(est_time=5, suite="base-a-test-cpu")

TOKENIZER = make_tokenizer()
GENERATION_CONFIG = (
    '{"fake": {"generation_config": {"do_sample": true, "temperature": 0.7, "top_k": 64, "top_p": 0.95}}}'
)
HELLO = [{"role": "user", "content": "Hello"}]
PROMPT = "<bos><|turn>user\nHello<turn|>\n<|turn>model\n"


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def says(text: str, **custom) -> dict:
    """Extra body with which the fake scheduler answers this text, then the end-of-turn token 1."""
    return {"custom_params": {"output_ids": [*ids_of(text), 1], **custom}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = make_model_folder(tmp_path_factory.mktemp("m"))
    flags = ["--model-path", folder, "--served-model-name", "tiny", "--api-key", "key", "--context-length", "256"]
    flags += ["--enable-cache-report", "--json-model-override-args", GENERATION_CONFIG, "--log-level", "warning"]
    flags += ["--default-chat-template-kwargs", '{"shout": ""}']
    with ServerProcess("sglang.test.fake_server", *flags) as server:
        server.client.headers["Authorization"] = "Bearer key"
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="key", max_retries=0) as client:
        yield client


@pytest.fixture
def chat(client):
    def chat(messages=HELLO, text: str = "ok", **options):
        extra = {**says(text), **options.pop("extra_body", {})}
        return client.chat.completions.create(model="tiny", messages=messages, extra_body=extra, **options)

    return chat


@pytest.fixture
def last_prompt(server):
    return lambda: TOKENIZER.decode(server.internal_state()["last_request"]["input_ids"], skip_special_tokens=False)


# ---- chat ---------------------------------------------------------------------------------------------------------


def test_chat(chat, last_prompt, server):
    answer = chat(text="Good day €")
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", "Good day €")
    assert (choice.finish_reason, choice.index, answer.object, answer.model) == ("stop", 0, "chat.completion", "tiny")
    prompt, completion = len(ids_of(PROMPT)), len(ids_of("Good day €")) + 1
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (
        prompt,
        completion,
        prompt + completion,
    )
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert last_prompt() == PROMPT
    assert server.internal_state()["last_request"]["max_new_tokens"] == 256  # as far as the context goes


def test_chat_stream(chat):
    pieces = list(chat(text="a naïve 😀 answer", stream=True, stream_options={"include_usage": True}))
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == "a naïve 😀 answer"
    assert [p.choices[0].finish_reason for p in pieces[:-1]] == [None] * (len(pieces) - 2) + ["stop"]
    assert pieces[-1].choices == []
    assert pieces[-1].usage.completion_tokens == len(ids_of("a naïve 😀 answer")) + 1
    assert len({p.id for p in pieces}) == 1
    assert all(p.object == "chat.completion.chunk" and p.usage is None for p in pieces[:-1])


def test_stream_ends_at_stop_string_without_showing_it(chat):
    pieces = list(
        chat(text="12 apples END more", stream=True, stop=["END"], extra_body=says("12 apples END more", delay=0.002))
    )
    deltas = [p.choices[0].delta.content for p in pieces if p.choices[0].delta.content]
    assert "".join(deltas) == "12 apples "
    assert not any("E" in d for d in deltas)
    assert (pieces[-1].choices[0].finish_reason, pieces[-1].choices[0].matched_stop) == ("stop", "END")


def test_n_chat_choices_stream_side_by_side(chat):
    texts = {0: "", 1: "", 2: ""}
    ends = set()
    for piece in chat(text="same", stream=True, n=3):
        choice = piece.choices[0]
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            ends.add(choice.index)
    assert texts == {0: "same", 1: "same", 2: "same"}
    assert ends == {0, 1, 2}
    answer = chat(text="same", n=3)
    assert [c.message.content for c in answer.choices] == ["same"] * 3
    assert answer.usage.prompt_tokens == len(ids_of(PROMPT))  # counted once


def test_chat_logprobs(chat):
    for options in ({}, {"stream": True}):
        answer = chat(text="h€", logprobs=True, top_logprobs=2, **options)
        if options:
            content = [e for p in answer if p.choices[0].logprobs for e in p.choices[0].logprobs.content]
        else:
            content = answer.choices[0].logprobs.content
        assert [e.token for e in content] == ["h", "\ufffd", "\ufffd", "\ufffd", "<eos>"]
        assert sum((e.bytes for e in content[:-1]), []) == list("h€".encode())
        assert [e.logprob for e in content] == [-1, -2, -3, -4, -5]
        assert [[t.logprob for t in e.top_logprobs] for e in content] == [[-0.25, -0.5]] * 5
    assert chat(logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert chat().choices[0].logprobs is None


def test_sampling_values_reach_the_scheduler(chat, server):
    chat(
        temperature=0.5, top_p=0.9, seed=-3, presence_penalty=0.25, frequency_penalty=-0.5, max_completion_tokens=77,
        max_tokens=5, logit_bias={"9": -1}, stop=["x", "y"], user="me", metadata={"a": "b"}, store=False,
        extra_body={**says("ok"), "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": False},
    )  # fmt: skip
    last = server.internal_state()["last_request"]
    want = {
        "temperature": 0.5, "top_p": 0.9, "sampling_seed": 2**63 - 3, "presence_penalty": 0.25,
        "frequency_penalty": -0.5, "max_new_tokens": 77, "logit_bias": {"9": -1.0}, "stop": ["x", "y"],
        "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1,
    }  # fmt: skip
    assert {k: last[k] for k in want} == want


def test_defaults_come_from_generation_config(chat, client, server):
    chat()
    last = server.internal_state()["last_request"]
    assert (last["temperature"], last["top_k"], last["top_p"]) == (0.7, 64, 0.95)
    chat(temperature=0)
    assert server.internal_state()["last_request"]["top_k"] == 1
    server.client.post("/generate", json={"text": "a", "sampling_params": {"max_new_tokens": 1}})
    assert "top_k" not in server.internal_state()["last_request"]  # the native endpoint has its own defaults


def test_roles_parts_tools_and_template_variables(chat, last_prompt):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    chat(
        [{"role": "system", "content": "S"}, {"role": "user", "content": parts}, {"role": "assistant", "content": "A"}]
    )
    turns = "<bos><|turn>system\nS<turn|>\n<|turn>user\none two<turn|>\n<|turn>model\nA<turn|>\n"
    assert last_prompt() == turns + "<|turn>model\n"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    chat(tools=[tool], extra_body={"chat_template_kwargs": {"shout": "LOUD"}})
    assert '"name": "f"' in last_prompt()
    assert "LOUD" in last_prompt()
    chat(tools=[tool], tool_choice="none")
    assert "tools:" not in last_prompt()
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    chat([*HELLO, {"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "content": "5"}])
    assert "<|turn>tool\n5<turn|>" in last_prompt()


def test_final_message_is_continued(chat, last_prompt):
    chat([*HELLO, {"role": "assistant", "content": "The answer is"}], extra_body={"continue_final_message": True})
    assert last_prompt().endswith("<|turn>model\nThe answer is")


# ---- completions --------------------------------------------------------------------------------------------------


def test_completion(client, server):
    answer = client.completions.create(model="tiny", prompt="the apples")
    assert answer.choices[0].text.startswith("the apples")
    assert answer.usage.completion_tokens == 16  # OpenAI's default
    assert answer.choices[0].finish_reason == "length"
    assert answer.object == "text_completion"
    answer = client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=2, temperature=0)
    assert [(c.index, c.text) for c in answer.choices] == [(0, "a"), (1, "a"), (2, "b"), (3, "b")]
    assert answer.usage.prompt_tokens == 4
    answer = client.completions.create(model="tiny", prompt=ids_of("xyz"), max_tokens=4)
    assert answer.choices[0].text == "xyzx"
    answer = client.completions.create(model="tiny", prompt=[ids_of("x"), ids_of("y")], max_tokens=2, best_of=1)
    assert [c.text for c in answer.choices] == ["xx", "yy"]


def test_completion_echo_and_logprobs(client):
    answer = client.completions.create(model="tiny", prompt=ids_of("ab"), max_tokens=3, echo=True, logprobs=1)
    choice = answer.choices[0]
    assert choice.text == "ababa"
    assert choice.logprobs.tokens == list("ababa")
    assert choice.logprobs.token_logprobs == [None, -2, -1, -2, -3]
    assert choice.logprobs.text_offset == [0, 1, 2, 3, 4]
    assert len(choice.logprobs.top_logprobs) == 5
    only_prompt = client.completions.create(model="tiny", prompt="ab", max_tokens=0, echo=True, logprobs=0)
    assert only_prompt.choices[0].text == "ab"
    assert only_prompt.choices[0].logprobs.tokens == ["<bos>", "a", "b"]


def test_completion_stream(client):
    stream = client.completions.create(
        model="tiny", prompt=["q", "r"], max_tokens=30, echo=True, logprobs=1, stream=True,
        stream_options={"include_usage": True}, extra_body=says("some €uro text"),
    )  # fmt: skip
    texts, tokens, offsets, usage = {0: "", 1: ""}, {0: [], 1: []}, {0: [], 1: []}, None
    for piece in stream:
        usage = piece.usage or usage
        for choice in piece.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens
            offsets[choice.index] += choice.logprobs.text_offset
    assert texts == {0: "qsome €uro text", 1: "rsome €uro text"}
    assert tokens[0][:3] == ["<bos>", "q", "s"]
    assert len(tokens[0]) == 2 + len(ids_of("some €uro text")) + 1
    assert offsets[1] == sorted(offsets[1])
    assert usage.completion_tokens == 2 * (len(ids_of("some €uro text")) + 1)


def test_models(client):
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "sglang"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_client_that_stops_reading_frees_its_request(chat, server):
    with chat(text="x", stream=True, extra_body=says("x" * 200, delay=0.05, label="quitter")) as stream:
        next(iter(stream))
    done = threading.Event()
    for _ in range(100):
        if "quitter" in server.internal_state()["aborted"]:
            done.set()
            break
        done.wait(0.05)
    assert done.is_set()


# ---- refused ------------------------------------------------------------------------------------------------------

CHAT = {"messages": HELLO}


@pytest.mark.parametrize(
    ("path", "body", "says_what"),
    [
        ("chat/completions", {}, "field 'messages' is missing"),
        ("chat/completions", {"messages": []}, "messages is empty"),
        ("chat/completions", {"messages": "hi"}, "messages: expected `array`"),
        ("chat/completions", {"messages": [{"content": "x"}]}, "messages[0].role is None"),
        ("chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role is 'robot'"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content is missing"),
        ("chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content must be text"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]: only parts of type text are supported, not 'image_url'",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "content[0].text is missing",
        ),
        ("chat/completions", {**CHAT, "guided_json": {"type": "object"}}, "guided_json is not supported"),
        ("chat/completions", {**CHAT, "enable_thinking": True}, "send chat_template_kwargs"),
        ("completions", {"prompt": "a", "prompt_logprobs": 1}, "prompt_logprobs is not supported: /generate has them"),
        ("embeddings", {"input": "a"}, "/v1/embeddings is not served"),
        ("moderations", {"input": "a"}, "generates text; use /v1/chat/completions"),
        ("images/generations", {"prompt": "a"}, "/v1/images/generations is not served"),
        ("chat/completions", {**CHAT, "temperature": "hot"}, "temperature: expected `float | null`"),
        ("chat/completions", {**CHAT, "temperature": -1}, "temperature"),
        ("chat/completions", {**CHAT, "max_tokens": -5}, "max_tokens must be"),
        ("chat/completions", {**CHAT, "n": 0}, "n must be"),
        ("chat/completions", {**CHAT, "stop": ["x"] * 1000}, "1000"),
        ("chat/completions", {**CHAT, "logit_bias": {"x": 1}}, "logit_bias"),
        ("chat/completions", {**CHAT, "response_format": {"type": "structural_tag"}}, "structural_tag has neither a"),
        ("chat/completions", {**CHAT, "response_format": {"type": "json_schema"}}, "has no schema, which is an"),
        ("chat/completions", {**CHAT, "response_format": "json"}, "response_format has the type None"),
        (
            "chat/completions",
            {**CHAT, "response_format": {"type": "json_object"}, "regex": "a"},
            "json_schema and regex are both given",
        ),
        (
            "chat/completions",
            {**CHAT, "response_format": {"type": "json_object"}, "json_schema": {}, "ebnf": "a"},
            "json_schema and ebnf are both given",
        ),
        ("chat/completions", {**CHAT, "min_tokens": 3, "regex": "a+"}, "min_tokens contradicts regex"),
        ("completions", {"prompt": "a", "response_format": {"type": "x"}}, "response_format has the type 'x'"),
        ("chat/completions", {**CHAT, "tool_choice": "required"}, "tool_choice is 'required', but there are no tools"),
        ("chat/completions", {**CHAT, "tools": [{"type": "x"}]}, "tools[0] is of type 'x'"),
        ("chat/completions", {**CHAT, "tools": [{"name": "f"}]}, "tools[0].function must be an object with a name"),
        ("chat/completions", {**CHAT, "functions": [{"name": "f"}]}, "functions is not supported"),
        ("completions", {"prompt": "a", "custom_logit_processor": "x"}, "of thoughts send thinking_budget"),
        ("chat/completions", {**CHAT, "modalities": ["audio"]}, "modalities"),
        ("chat/completions", {**CHAT, "top_logprobs": 2}, "top_logprobs needs logprobs: true"),
        ("chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 21}, "0 to 20 are possible"),
        ("chat/completions", {**CHAT, "stream_options": {"include_usage": True}}, "stream_options needs stream: true"),
        ("chat/completions", {**CHAT, "continue_final_message": True}, "needs an assistant message at the end"),
        ("chat/completions", {**CHAT, "chat_template_kwargs": {"messages": []}}, "must not hold 'messages'"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x" * 300}]}, "at most 255 are possible"),
        ("completions", {"prompt": []}, "prompt is an empty list"),
        ("completions", {"prompt": ["a", 5]}, "prompt mixes int and str"),
        ("completions", {"prompt": [99999]}, "token id 99999"),
        ("completions", {"prompt": {"a": 1}}, "prompt: expected `str | array`"),
        ("completions", {"prompt": "a", "suffix": "b"}, "suffix (filling in the middle) is not supported"),
        ("completions", {"prompt": "a", "best_of": 3}, "best_of 3 is not supported"),
        ("completions", {"prompt": "a", "logprobs": 50}, "logprobs is 50; 0 to 20"),
        ("completions", {"prompt": ["a", "b"], "rid": ["r"]}, "rid has 1 entries for 2 prompts"),
        ("chat/completions", {**CHAT, "rid": ["r"]}, "rid is a list, but there is one prompt"),
    ],
)
def test_bad_requests(server, path, body, says_what):
    reply = server.client.post(f"/v1/{path}", json=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["object"] == "error"
    assert says_what in reply.json()["message"]


def test_errors_are_the_clients_exceptions(client, server):
    with pytest.raises(openai.BadRequestError, match="role is 'x'"):
        client.chat.completions.create(model="tiny", messages=[{"role": "x", "content": ""}])
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
    refuse = {"custom_params": {"refuse": "the queue is full", "status": 503}}
    with pytest.raises(openai.InternalServerError, match="the queue is full"):
        client.completions.create(model="tiny", prompt="a", stream=True, extra_body=refuse)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
