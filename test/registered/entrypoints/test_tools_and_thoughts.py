"""Calls and thoughts over /v1/chat/completions, as the openai client sees them."""

import json
import sys
from pathlib import Path

import openai
import pytest

from sglang.srt.server_args import ServerArgs, model_folder
from sglang.srt.utils.tokenizer import Tokenizer
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import ServerProcess

register_cpu_ci(est_time=15, suite="base-a-test-cpu")

FOLDER = model_folder(ServerArgs())
TOKENIZER = Tokenizer(FOLDER)
END_OF_TURN, RESULT, CALL_END = TOKENIZER.special_ids_of(["<turn|>", "<|tool_response>", "<tool_call|>"])
OUTPUTS = json.loads((Path(__file__).parent.parent / "parser" / "gemma4_outputs.json").read_text(encoding="utf-8"))
ASK = [{"role": "user", "content": "Weather in Oslo?"}]
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
CALL = '<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>}<tool_call|>'
Q = '<|"|>'


@pytest.fixture(scope="module")
def server():
    with ServerProcess("sglang.test.fake_server", "--model-path", FOLDER, "--log-level", "warning") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def says(text: str) -> dict:
    return {"custom_params": {"output_ids": TOKENIZER.encode(text, False)}, "stop_token_ids": [END_OF_TURN]}


@pytest.fixture
def chat(client):
    """chat(text, ...): what a model that says `text` answers; streams are put together as clients do."""

    def chat(text: str, stream: bool = False, **options):
        extra = says(text) | options.pop("extra_body", {})
        options = {"tools": [TOOL], "max_tokens": 400} | options
        if not stream:
            return client.chat.completions.create(model="m", messages=ASK, extra_body=extra, **options).choices[0]
        with client.chat.completions.stream(model="m", messages=ASK, extra_body=extra, **options) as events:
            thoughts = []
            for event in events:
                if event.type == "chunk" and event.chunk.choices:
                    thoughts.append(event.chunk.choices[0].delta.reasoning_content or "")
            try:
                choice = events.get_final_completion().choices[0]
            except openai.LengthFinishReasonError as e:
                choice = e.completion.choices[0]
        choice.message.reasoning_content = "".join(thoughts) or None
        return choice

    return chat


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", [c for c in OUTPUTS if "options" not in c], ids=lambda case: case["note"])
def test_recorded_outputs(chat, case, stream):
    expected = case["expected"]
    raw, finish = case["raw"], expected["finish_reason"]
    options = {"max_tokens": len(TOKENIZER.encode(raw, False))}
    if case["class"] == "malformed":  # it ends within a call: no call
        finish = "length"
    choice = chat(raw, stream, **options)
    message = choice.message
    assert (message.content or None) == expected["content"]
    assert message.reasoning_content == expected["reasoning_content"]
    assert choice.finish_reason == finish
    calls = [c for c in message.tool_calls or [] if finish == "tool_calls"]
    assert [c.function.name for c in calls] == [c["name"] for c in expected["tool_calls"]]
    assert [json.loads(c.function.arguments) for c in calls] == [c["arguments"] for c in expected["tool_calls"]]
    assert all(c.id.startswith("call_") and c.type == "function" for c in calls)
    assert len({c.id for c in calls}) == len(calls)


@pytest.mark.parametrize("interval", [1, 7, 100])
def test_a_stream_grows_by_deltas_that_clients_can_add_up(start, interval):
    """With several marks in one piece, too."""
    text = f"<|channel>thought\nHm, so.\n<channel|>Let me see.\n{CALL}{CALL}<|tool_response>"
    server = start("--model-path", FOLDER, "--stream-interval", str(interval))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="m", messages=ASK, tools=[TOOL], stream=True, max_tokens=400, extra_body=says(text),
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = list(stream)
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    assert "".join(d.content or "" for d in deltas) == "Let me see."
    assert "".join(d.reasoning_content or "" for d in deltas) == "Hm, so."
    calls = [c for d in deltas for c in d.tool_calls or []]
    starts = [c for c in calls if c.id]
    assert [(c.index, c.type, c.function.name, c.function.arguments) for c in starts] == [
        (0, "function", "get_weather", ""), (1, "function", "get_weather", ""),
    ]  # fmt: skip
    for index in (0, 1):
        arguments = [c.function.arguments for c in calls if c.index == index]
        assert json.loads("".join(arguments)) == {"city": "Oslo"}
        assert interval > 1 or len(arguments) > 2  # they grow
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "tool_calls"
    assert "<" not in "".join(d.content or "" for d in deltas)
    assert chunks[-1].usage.reasoning_tokens == len(TOKENIZER.encode("<|channel>thought\nHm, so.\n<channel|>", False))


def test_the_turn_ends_where_the_model_waits_for_a_result(chat, server):
    """Without it the model makes up the result, whatever generation_config.json says."""
    choice = chat(f"{CALL}<|tool_response>response:get_weather{{value:{Q}made up{Q}}}<tool_response|>It is warm.")
    assert (choice.finish_reason, choice.message.content, len(choice.message.tool_calls)) == ("tool_calls", None, 1)
    assert RESULT in server.internal_state()["last_request"]["stop_token_ids"]


def test_a_call_to_a_tool_that_was_not_given(chat, client):
    """It is reported as the model made it; the client may say so in a result, in a history that has such a call."""
    choice = chat('<|tool_call>call:rm{path:<|"|>/<|"|>}<tool_call|><|tool_response>')
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("rm", {"path": "/"})
    assert choice.finish_reason == "tool_calls"
    made = {"id": call.id, "type": "function", "function": {"name": "rm", "arguments": call.function.arguments}}
    result = {"role": "tool", "tool_call_id": call.id, "content": "there is no tool rm"}
    history = [*ASK, {"role": "assistant", "content": None, "tool_calls": [made]}, result]
    extra = says("Sorry.<turn|>")
    reply = client.chat.completions.create(model="m", messages=history, tools=[TOOL], max_tokens=9, extra_body=extra)
    assert reply.choices[0].message.content == "Sorry."
    with pytest.raises(openai.BadRequestError, match="is a tool's result, but no call stands before it"):
        client.chat.completions.create(model="m", messages=[*ASK, result], extra_body=extra)


def test_thinking_is_asked_for_in_several_ways(chat, server):
    """Upstream's `reasoning`, OpenRouter's too."""
    for extra, thinks, budget in (
        ({"reasoning_effort": "low"}, True, None),
        ({"reasoning_effort": "none"}, False, None),
        ({"reasoning": {"effort": "high"}, "reasoning_effort": "none"}, True, None),
        ({"reasoning": {"enabled": True}}, True, None),
        ({"reasoning": {"enabled": False}}, False, None),
        ({"reasoning": {"max_tokens": 70, "exclude": False}}, True, 70),
        ({"reasoning": {"max_tokens": 70}, "thinking_budget": 5}, True, 5),
        ({"reasoning": {"enabled": True}, "chat_template_kwargs": {"enable_thinking": False}}, False, None),
        ({"reasoning": {}, "thinking_budget": 0}, False, 0),
    ):
        chat("Yes.<turn|>", extra_body=says("Yes.<turn|>") | extra)
        asked = server.internal_state()["last_request"]
        assert ("<|think|>" in TOKENIZER.decode(asked["input_ids"], skip_special_tokens=False)) is thinks, extra
        assert asked.get("thinking_budget") == budget
    for extra in ({"reasoning": {"max_tokens": -1}}, {"thinking_budget": True}, {"reasoning": "high"}):
        with pytest.raises(openai.BadRequestError):
            chat("Yes.<turn|>", extra_body=says("Yes.<turn|>") | extra)


def test_a_model_without_marks_has_no_budget(start):
    server = start()  # of the small test tokenizer
    reply = server.client.post("/generate", json={"text": "a", "sampling_params": {"thinking_budget": 5}})
    assert reply.status_code == 400 and "has no marks of thoughts" in reply.json()["message"]
    body = {"model": "m", "max_tokens": 2, "messages": ASK, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    assert server.client.post("/v1/messages", json=body).status_code == 200, "whatever a client always sends"


def test_one_call_a_turn_if_so_asked(chat):
    choice = chat(CALL + CALL, parallel_tool_calls=False)
    assert (len(choice.message.tool_calls), choice.finish_reason) == (1, "tool_calls")


def test_a_call_that_is_cut_off_is_no_call(chat):
    length = len(TOKENIZER.encode(CALL, False))
    for stream in (False, True):
        choice = chat(f"Yes. {CALL}{CALL}", stream, max_tokens=length - 3)
        assert choice.finish_reason == "length" and choice.message.content == "Yes."
    assert chat(CALL, max_tokens=length - 3).message.tool_calls is None


def test_without_tools_nothing_is_called(chat):
    for options in ({"tools": openai.omit}, {"tool_choice": "none"}):
        choice = chat(f"See {CALL}<turn|>", **options)
        assert choice.message.tool_calls is None and choice.finish_reason == "stop"
        assert choice.message.content == 'See call:get_weather{city:"Oslo"}'


def test_what_looks_like_a_mark_in_plain_text_is_text(chat):
    """The letters of a mark, token by token, are not the mark."""
    pieces = [i for part in ("<|tool", "_call>", "call:f{}") for i in TOKENIZER.encode(part, False)]
    extra = {"custom_params": {"output_ids": [*pieces, END_OF_TURN]}, "stop_token_ids": [END_OF_TURN]}
    choice = chat("", extra_body=extra)
    assert choice.message.content == "<|tool_call>call:f{}" and choice.message.tool_calls is None


THOUGHT = "<|channel>thought\nFirst this,\nthen that.\n<channel|>Done.<turn|>"


def test_thoughts_stay_in_the_answer_if_so_asked(chat):
    choice = chat(THOUGHT, extra_body={"separate_reasoning": False})
    assert choice.message.reasoning_content is None
    assert choice.message.content == "thought\nFirst this,\nthen that.\nDone."


def test_thoughts_may_come_whole(client):
    extra = says(THOUGHT) | {"stream_reasoning": False}
    stream = client.chat.completions.create(model="m", messages=ASK, stream=True, max_tokens=99, extra_body=extra)
    deltas = [c.choices[0].delta for c in stream]
    assert [d.reasoning_content for d in deltas if d.reasoning_content] == ["First this,\nthen that."]
    assert "".join(d.content or "" for d in deltas) == "Done."
    extra["custom_params"] = {"output_ids": TOKENIZER.encode("<|channel>thought\ncut o", False)}
    stream = client.chat.completions.create(model="m", messages=ASK, stream=True, max_tokens=7, extra_body=extra)
    assert "".join(c.choices[0].delta.reasoning_content or "" for c in stream).startswith("cut")


def test_a_thought_that_the_prompt_has_opened(chat):
    """As it does behind a tool's result, with thinking on."""
    begun = [*ASK, {"role": "assistant", "content": "<|channel>thought\nI think"}]
    choice = chat(
        " so.\n<channel|>Yes.<turn|>",
        extra_body=says(" so.\n<channel|>Yes.<turn|>") | {"messages": begun, "continue_final_message": True},
    )
    assert (choice.message.reasoning_content, choice.message.content) == (" so.", "Yes.")


def test_log_probabilities_cover_every_token(chat):
    choice = chat(f"{THOUGHT}", logprobs=True)
    assert len(choice.logprobs.content) == len(TOKENIZER.encode(THOUGHT, False))
    assert chat(THOUGHT, logprobs=True, n=2, temperature=1.0).message.content == "Done."


def test_parsers_can_be_left_out(start):
    server = start("--model-path", FOLDER, "--tool-call-parser", "none", "--reasoning-parser", "none")
    body = {"messages": ASK, "tools": [TOOL], "max_tokens": 99, **says(f"<|channel>thought\nA.<channel|>{CALL}<turn|>")}
    message = server.client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    assert message["content"] == 'thought\nA.call:get_weather{city:"Oslo"}'
    assert (message["tool_calls"], message["reasoning_content"]) == (None, None)
    info = server.client.get("/model_info").json()
    assert (info["tool_call_parser"], info["reasoning_parser"]) == (None, None)


def test_a_parser_without_its_marks_is_refused_at_start(start):
    server = start("--reasoning-parser", "gemma4", ready=False)  # the small test tokenizer has no channels
    assert server.process.wait(60) == 2
    assert "error: --reasoning-parser gemma4: this tokenizer lacks the special tokens" in server.output()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
