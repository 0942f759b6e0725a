"""Clients that people program with, each against the same server: what docs/clients.md says of them is tried here.

The model is a stand-in that says what each test lets it say, so calls and forms are exact; what the server sends to it
(grammars, prompts) is looked at where a form depends on it.
"""

import asyncio
import itertools
import json
import re
import sys
from pathlib import Path

import anthropic
import openai
import pydantic
import pydantic_ai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent, NativeOutput, PromptedOutput
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

import sglang
from sglang.srt.server_args import ServerArgs, model_folder
from sglang.srt.utils.tokenizer import Tokenizer
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import ServerProcess

register_cpu_ci(est_time=15, suite="base-a-test-cpu")

FOLDER = model_folder(ServerArgs())
TOKENIZER = Tokenizer(FOLDER)
(END_OF_TURN,) = TOKENIZER.special_ids_of(["<turn|>"])
QUESTION = "Weather in Oslo?"
ASK = [{"role": "user", "content": QUESTION}]
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}
THOUGHT = "<|channel>thought\nHm,\nso.\n<channel|>"
Q = '<|"|>'
WEATHER = f"<|tool_call>call:get_weather{{city:{Q}Oslo{Q},days:2}}<tool_call|>"
WAITS = "<|tool_response>"  # the end of a turn with calls
ARGUMENTS = {"city": "Oslo", "days": 2}


class Reply(pydantic.BaseModel):
    """What the user wants to know."""

    city: str
    degrees: int


REPLY = Reply(city="Oslo", degrees=-3)
REPLY_TEXT = f"{REPLY.model_dump_json()}<turn|>"
numbers = itertools.count()


def reply_call(name: str) -> str:
    return f"<|tool_call>call:{name}{{city:{Q}Oslo{Q},degrees:-3}}<tool_call|>{WAITS}"


def says(*texts: str) -> dict:
    """The first request gets the first text, the next the next."""
    turns = [TOKENIZER.encode(text, False) for text in texts]
    script = {"script": str(next(numbers)), "turns": turns}
    return {"custom_params": script, "stop_token_ids": [END_OF_TURN]}


def get_weather(city: str, days: int) -> str:
    """The weather of the next days.

    Args:
        city: its name
        days: how many
    """
    return f"rain in {city} for {days} days"


@pytest.fixture(scope="module")
def server():
    with ServerProcess("sglang.test.fake_server", "--model-path", FOLDER, "--log-level", "warning") as server:
        yield server


@pytest.fixture
def last_request(server):
    return lambda: server.internal_state()["last_request"]


def prompt_of(request: dict) -> str:
    return TOKENIZER.decode(request["input_ids"], skip_special_tokens=False)


def has_form(request: dict) -> bool:
    """The model was held to a grammar."""
    return any(request.get(name) is not None for name in ("json_schema", "regex", "ebnf"))


# ---- openai --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


OPENAI_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of the next days.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def test_openai_streams_calls_by_its_helper(client):
    extra = says(f"{THOUGHT}I look.{WEATHER}{WAITS}")
    with client.chat.completions.stream(model="m", messages=ASK, tools=[OPENAI_TOOL], extra_body=extra) as events:
        seen = [event.type for event in events]
        completion = events.get_final_completion()
    assert seen.count("tool_calls.function.arguments.delta") > 2
    assert {"content.delta", "content.done", "tool_calls.function.arguments.done"} <= set(seen)
    message = completion.choices[0].message
    assert message.content == "I look." and json.loads(message.tool_calls[0].function.arguments) == ARGUMENTS


def test_openai_parses_answers_and_calls(client, last_request):
    parsed = client.chat.completions.parse(model="m", messages=ASK, response_format=Reply, extra_body=says(REPLY_TEXT))
    assert parsed.choices[0].message.parsed == REPLY and has_form(last_request())
    tool = openai.pydantic_function_tool(Reply)
    parsed = client.chat.completions.parse(model="m", messages=ASK, tools=[tool], extra_body=says(reply_call("Reply")))
    assert parsed.choices[0].message.tool_calls[0].function.parsed_arguments == REPLY


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_openai_asks_for_a_call(client, last_request, choice):
    reply = client.chat.completions.create(
        model="m", messages=ASK, tools=[OPENAI_TOOL], tool_choice=choice, extra_body=says(WEATHER + WAITS)
    )
    assert json.loads(reply.choices[0].message.tool_calls[0].function.arguments) == ARGUMENTS
    assert reply.choices[0].finish_reason == "tool_calls"


def test_a_call_to_a_tool_that_was_not_offered_is_reported(client):
    text = f"<|tool_call>call:rm_all{{path:{Q}/{Q}}}<tool_call|>{WAITS}"
    reply = client.chat.completions.create(model="m", messages=ASK, tools=[OPENAI_TOOL], extra_body=says(text))
    (call,) = reply.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("rm_all", {"path": "/"})


def test_openai_responses(client, last_request):
    parsed = client.responses.parse(model="m", input=QUESTION, text_format=Reply, extra_body=says(REPLY_TEXT))
    assert parsed.output_parsed == REPLY and has_form(last_request())
    tool = openai.pydantic_function_tool(Reply)["function"] | {"type": "function"}
    body = {"model": "m", "input": QUESTION, "tools": [tool], "extra_body": says(THOUGHT + reply_call("Reply"))}
    with client.responses.stream(**body) as events:
        kinds = [event.type for event in events]
        response = events.get_final_response()
    assert {"response.reasoning_text.delta", "response.function_call_arguments.delta"} <= set(kinds)
    assert [item.type for item in response.output] == ["reasoning", "function_call"]
    assert response.output[1].parsed_arguments == REPLY.model_dump()


# ---- anthropic -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def claude(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_anthropic_runs_tools(claude, last_request):
    """Its own loop: the call is run, its result sent back, the answer is the last message."""
    extra = says(f"I look.{WEATHER}{WAITS}", "It rains.<turn|>")
    runner = claude.beta.messages.tool_runner(
        model="m", max_tokens=300, messages=ASK, tools=[anthropic.beta_tool(get_weather)], extra_body=extra
    )
    assert runner.until_done().content[0].text == "It rains."
    assert "rain in Oslo for 2 days" in prompt_of(last_request())


def test_anthropic_parses(claude, last_request):
    reply = claude.messages.parse(
        model="m", max_tokens=300, messages=ASK, output_format=Reply, extra_body=says(REPLY_TEXT)
    )
    assert reply.parsed_output == REPLY and has_form(last_request())


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_anthropic_asks_for_a_call(claude, choice):
    tool = {"name": "get_weather", "input_schema": OPENAI_TOOL["function"]["parameters"]}
    reply = claude.messages.create(
        model="m", max_tokens=300, messages=ASK, tools=[tool], tool_choice=choice, extra_body=says(WEATHER + WAITS)
    )
    assert (reply.content[0].input, reply.stop_reason) == (ARGUMENTS, "tool_use")


# ---- langchain-openai ----------------------------------------------------------------------------------------------


@pytest.fixture
def langchain(server):
    """langchain(text, ...): a chat model that says `text`."""

    def chat(*texts: str, **options) -> ChatOpenAI:
        extra = says(*texts) | options.pop("extra_body", {})
        address = {"base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 0}
        return ChatOpenAI(model="m", extra_body=extra, **address, **options)

    return chat


def test_langchain_invokes_and_streams(langchain):
    reply = langchain("It rains.<turn|>").invoke(QUESTION)
    assert reply.content == "It rains." and reply.response_metadata["finish_reason"] == "stop"
    assert reply.usage_metadata["output_tokens"] == len(TOKENIZER.encode("It rains.<turn|>", False))
    whole = None
    for chunk in langchain("It rains.<turn|>", stream_usage=True).stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    assert whole.content == "It rains." and whole.usage_metadata == reply.usage_metadata


def test_langchain_binds_tools(langchain, last_request):
    chat = langchain(f"I look.{WEATHER}{WEATHER}{WAITS}", "It rains.<turn|>").bind_tools([get_weather])
    asked = [HumanMessage(QUESTION)]
    called = chat.invoke(asked)
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("get_weather", ARGUMENTS)] * 2
    results = [ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"]) for call in called.tool_calls]
    assert chat.invoke([*asked, called, *results]).content == "It rains."
    assert prompt_of(last_request()).count("rain in Oslo for 2 days") == 2


def test_langchain_streams_calls(langchain):
    whole = None
    for chunk in langchain(f"{WEATHER}{WAITS}").bind_tools([get_weather]).stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("get_weather", ARGUMENTS)]
    assert not whole.invalid_tool_calls


@pytest.mark.parametrize("choice", ["any", "get_weather", "auto", "none"])
def test_langchain_chooses_tools(langchain, choice):
    reply = langchain(f"{WEATHER}{WAITS}").bind_tools([get_weather], tool_choice=choice).invoke(QUESTION)
    assert len(reply.tool_calls) == (choice != "none")


@pytest.mark.parametrize("strict", [None, True])
@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
def test_langchain_structures_output(langchain, last_request, method, strict):
    if method == "json_mode" and strict:
        return  # langchain's own refusal
    text = reply_call("Reply") if method == "function_calling" else REPLY_TEXT
    chat = langchain(text, text).with_structured_output(Reply, method=method, strict=strict)
    assert chat.invoke(QUESTION) == REPLY
    assert method == "function_calling" or has_form(last_request())
    assert list(chat.stream(QUESTION))[-1] == REPLY


def test_langchain_over_responses(langchain):
    chat = langchain(f"{THOUGHT}I look.{WEATHER}{WAITS}", use_responses_api=True).bind_tools([get_weather])
    reply = chat.invoke(QUESTION)
    assert reply.text == "I look." and reply.tool_calls[0]["args"] == ARGUMENTS
    assert isinstance(reply, AIMessage)


# ---- pydantic-ai ---------------------------------------------------------------------------------------------------


@pytest.fixture
def agent(server):
    """agent(*texts, ...): an agent whose model says the first text, then the next."""

    def agent(*texts: str, model: type = OpenAIChatModel, **options) -> Agent:
        provider = OpenAIProvider(base_url=f"{server.url}/v1", api_key="none")
        return Agent(model("m", provider=provider), model_settings={"extra_body": says(*texts)}, **options)

    return agent


def run(agent: Agent) -> pydantic_ai.AgentRunResult:
    return agent.run_sync(QUESTION)


@pytest.mark.parametrize("model", [OpenAIChatModel, OpenAIResponsesModel])
def test_pydantic_ai_runs_tools(agent, last_request, model):
    result = run(agent(f"{THOUGHT}I look.{WEATHER}{WAITS}", "It rains.<turn|>", model=model, tools=[get_weather]))
    assert result.output == "It rains."
    assert "rain in Oslo for 2 days" in prompt_of(last_request())
    (thought,) = [part for m in result.all_messages() for part in m.parts if isinstance(part, ThinkingPart)]
    if model is OpenAIChatModel:
        assert thought.content == "Hm,\nso."
    else:  # there it takes a summary for the content, and keeps the thought itself apart
        assert thought.provider_details["raw_content"] == ["Hm,\nso."]


@pytest.mark.parametrize("form", [NativeOutput, PromptedOutput])
def test_pydantic_ai_types_answers(agent, last_request, form):
    assert run(agent(REPLY_TEXT, output_type=form(Reply))).output == REPLY
    assert has_form(last_request())


@pytest.mark.parametrize("model", [OpenAIChatModel, OpenAIResponsesModel])
def test_pydantic_ai_types_answers_by_a_tool(agent, model):
    assert run(agent(reply_call("final_result"), model=model, output_type=Reply)).output == REPLY


def test_pydantic_ai_streams(agent):
    async def texts(agent: Agent) -> list:
        async with agent.run_stream(QUESTION) as result:
            return [part async for part in result.stream_output(debounce_by=None)]

    assert asyncio.run(texts(agent("It rains in Oslo.<turn|>")))[-1] == "It rains in Oslo."
    assert asyncio.run(texts(agent(reply_call("final_result"), output_type=Reply)))[-1] == REPLY


# ---- what they can't do here ---------------------------------------------------------------------------------------

PAGE = (Path(sglang.__file__).parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")
SEARCH = {"type": "web_search"}
REFUSED = {
    "generates text": lambda o, a: o.embeddings.create(model="m", input="a"),
    "background is not supported": lambda o, a: o.responses.create(model="m", input="a", background=True),
    "conversation is not supported": lambda o, a: o.responses.create(model="m", input="a", conversation="c"),
    "only type function is served": lambda o, a: o.responses.create(model="m", input="a", tools=[SEARCH]),
    "only parts of type text are supported": lambda o, a: o.chat.completions.create(model="m", messages=[IMAGE]),
    "functions is not supported": lambda o, a: o.chat.completions.create(
        model="m", messages=ASK, functions=[{"name": "f"}]
    ),
    "without thread": lambda o, a: a.beta.messages.create(
        model="m", messages=ASK, max_tokens=9, thread={"type": "create"}
    ),
    "mcp_servers is not supported": lambda o, a: a.beta.messages.create(
        model="m", messages=ASK, max_tokens=9, mcp_servers=[{"name": "n", "type": "url", "url": "x"}]
    ),
    "Not Found": lambda o, a: a.messages.batches.list(),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_refused_is_told_on_the_page(client, claude, reason):
    with pytest.raises((openai.APIStatusError, anthropic.APIStatusError), match=reason):
        REFUSED[reason](client, claude)
    assert reason in PAGE


def test_the_page_has_a_row_for_each_client():
    rows = re.findall(r"^\| ([a-z][a-z-]+) [0-9]", PAGE, re.MULTILINE)
    assert set(rows) == {"openai", "anthropic", "langchain-openai", "pydantic-ai", "litellm", "sglang-router"}


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
