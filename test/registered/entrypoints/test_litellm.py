"""LiteLLM against a server: completion, streams, tools, forms, its errors. It brings 250 MB with it, so it is an extra
of its own, `pip install -e '.[clients]'`, and this file is of the weekly suite."""

import json
import os
import sys

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or the import fetches a table of prices
try:
    import litellm
except ImportError:
    litellm = None

from sglang.srt.server_args import ServerArgs, model_folder
from sglang.srt.utils.tokenizer import Tokenizer
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import ServerProcess

register_cpu_ci(est_time=25, suite="weekly-test-cpu")
pytestmark = pytest.mark.skipif(litellm is None, reason="pip install -e '.[clients]'")

FOLDER = model_folder(ServerArgs())
TOKENIZER = Tokenizer(FOLDER)
(END_OF_TURN,) = TOKENIZER.special_ids_of(["<turn|>"])
ASK = [{"role": "user", "content": "Weather in Oslo?"}]
THOUGHT = "<|channel>thought\nHm,\nso.\n<channel|>"
Q = '<|"|>'
WEATHER = f"<|tool_call>call:get_weather{{city:{Q}Oslo{Q},days:2}}<tool_call|>"
WAITS = "<|tool_response>"
ARGUMENTS = {"city": "Oslo", "days": 2}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
REPLY = '{"city": "Oslo"}'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture(scope="module")
def server():
    with ServerProcess("sglang.test.fake_server", "--model-path", FOLDER, "--log-level", "warning") as server:
        yield server


@pytest.fixture(params=["openai", "hosted_vllm"])
def complete(server, request):
    """complete(text, ...): LiteLLM's answer from a model that says `text`, by two of its providers."""

    def complete(text: str = "It rains.<turn|>", **options):
        extra = {"custom_params": {"output_ids": TOKENIZER.encode(text, False)}, "stop_token_ids": [END_OF_TURN]}
        options = {"messages": ASK, "max_tokens": 300, "num_retries": 0, "extra_body": extra} | options
        address = {"api_base": f"{server.url}/v1", "api_key": "none"}
        return litellm.completion(model=f"{request.param}/m", **address, **options)

    return complete


def whole(chunks, messages=ASK):
    return litellm.stream_chunk_builder(list(chunks), messages=messages)


@pytest.mark.parametrize("stream", [False, True])
def test_answers(complete, stream):
    reply = complete(f"{THOUGHT}It rains.<turn|>", stream=stream)
    message = (whole(reply) if stream else reply).choices[0].message
    assert message.content == "It rains." and message.reasoning_content == "Hm,\nso."


@pytest.mark.parametrize("stream", [False, True])
def test_calls(complete, stream):
    reply = complete(f"I look.{WEATHER}{WEATHER}{WAITS}", tools=[TOOL], stream=stream)
    choice = (whole(reply) if stream else reply).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert [json.loads(c.function.arguments) for c in choice.message.tool_calls] == [ARGUMENTS] * 2
    results = [{"role": "tool", "tool_call_id": c.id, "content": "rain"} for c in choice.message.tool_calls]
    history = [*ASK, choice.message.model_dump(exclude_none=True), *results]
    assert complete(messages=history, tools=[TOOL]).choices[0].message.content == "It rains."


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_call_is_asked_for(complete, choice):
    reply = complete(f"{WEATHER}{WAITS}", tools=[TOOL], tool_choice=choice)
    assert json.loads(reply.choices[0].message.tool_calls[0].function.arguments) == ARGUMENTS


@pytest.mark.parametrize(
    "form",
    [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}],
)
def test_forms(complete, server, form):
    assert complete(f"{REPLY}<turn|>", response_format=form).choices[0].message.content == REPLY
    assert server.internal_state()["last_request"]["json_schema"] is not None


def test_too_long_a_prompt_is_its_own_error(complete):
    with pytest.raises(litellm.ContextWindowExceededError):
        complete(messages=[{"role": "user", "content": "word " * 70_000}])


def test_other_apis(server):
    """Anthropic's form and OpenAI's Responses, which it sends on as they are."""
    ids = TOKENIZER.encode("It rains.<turn|>", False)
    extra = {"custom_params": {"output_ids": ids}, "stop_token_ids": [END_OF_TURN]}
    options = {"messages": ASK, "max_tokens": 300, "extra_body": extra, "api_key": "none"}
    assert litellm.completion(model="anthropic/m", api_base=server.url, **options).choices[0].message.content
    made = litellm.responses(
        model="openai/m", input="Weather?", api_base=f"{server.url}/v1", api_key="none", extra_body=extra
    )
    assert made.output[0].content[0].text == "It rains."


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
