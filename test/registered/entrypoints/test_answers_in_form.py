"""Answers in a given form, from the shipped model through real servers: every one matches, alone, among others, on one
rank and on two, and what cannot be served is refused."""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import anthropic
import openai
import psutil
import pydantic
import pytest

from sglang.test.ci.ci_register import is_weekly, register_cpu_ci
from sglang.test.server_process import ServerProcess, wait_for

register_cpu_ci(est_time=60, suite="base-a-test-cpu")
register_cpu_ci(est_time=300, suite="weekly-test-cpu")

MODULE = "sglang.launch_server"
# float32: in bfloat16 a token may depend on what its request is batched with
FLAGS = ["--device", "cpu", "--dtype", "float32", "--max-total-tokens", "6000", "--chunked-prefill-size", "32"]
STORY = "Mia has 12 marbles. She gives 5 to her brother and finds 3 more. "
ASK = [{"role": "user", "content": STORY + "How many marbles does she have?"}]
LONG = 400  # tokens: more than any of the forms can take


class Reply(pydantic.BaseModel):
    """A form whose texts are bounded, so that no model can go on for ever."""

    model_config = {"extra": "forbid"}
    name: str = pydantic.Field(max_length=12)
    count: int = pydantic.Field(ge=0, le=999)
    kinds: list[bool] = pydantic.Field(max_length=2)


class Short(pydantic.BaseModel):
    """One field, for what has no logit_bias: this model fills each place with all the blanks that it may."""

    model_config = {"extra": "forbid"}
    right: bool


NO_BLANKS = dict.fromkeys(["107", "458", "117", "118", "121", "140"], -100)  # nine tenths of a Reply
SCHEMA = Reply.model_json_schema()
FORM = {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": SCHEMA}}


@pytest.fixture(scope="module")
def server():
    with ServerProcess(MODULE, *FLAGS, timeout=180) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def generate(server: ServerProcess, text: str = STORY, **params):
    body = {"text": text, "sampling_params": {"max_new_tokens": LONG} | params, "return_logprob": True}
    reply = server.client.post("/generate", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_every_answer_matches(client):
    reply = client.chat.completions.create(
        model="m", messages=ASK, response_format=FORM, n=3, max_tokens=LONG, seed=1, logprobs=True, top_logprobs=3,
        logit_bias=NO_BLANKS,
    )  # fmt: skip
    for choice in reply.choices:
        Reply.model_validate_json(choice.message.content)
        assert choice.finish_reason == "stop"
        assert all(entry.logprob <= 0 for entry in choice.logprobs.content)


def test_the_client_parses(client):
    parsed = client.chat.completions.parse(
        model="m", messages=ASK, response_format=Reply, max_tokens=LONG, temperature=0
    )
    assert isinstance(parsed.choices[0].message.parsed, Reply)


def test_a_stream(client):
    chunks = client.chat.completions.create(
        model="m", messages=ASK, response_format=FORM, max_tokens=LONG, temperature=0, stream=True, logit_bias=NO_BLANKS
    )
    Reply.model_validate_json("".join(chunk.choices[0].delta.content or "" for chunk in chunks))


@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_anthropics_forms(server, field):
    form = {"type": "json_schema", "schema": Short.model_json_schema()}
    extra = {"output_config": {"format": form}} if field == "output_config" else {"output_format": form}
    options = {"model": "m", "messages": ASK, "max_tokens": LONG, "extra_body": {**extra, "temperature": 0}}
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        if field == "output_config":
            (block,) = client.messages.create(**options).content
        else:
            with client.messages.stream(**options) as stream:
                (block,) = stream.get_final_message().content
        Short.model_validate_json(block.text)


def test_forms_of_responses(client):
    parsed = client.responses.parse(model="m", input=ASK, text_format=Short, max_output_tokens=LONG, temperature=0)
    assert isinstance(parsed.output_parsed, Short)
    assert parsed.text.format.type == "json_schema"
    with client.responses.stream(
        model="m", input=ASK, text_format=Short, max_output_tokens=LONG, temperature=0
    ) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed
    extra = {"text": {"format": {"type": "json_object"}}}
    reply = client.responses.create(model="m", input=ASK, max_output_tokens=4, extra_body=extra)
    assert reply.output_text.lstrip().startswith("{")


def test_json_object(client):
    """The closing brace is made likely: the model by itself would fill an object until the limit."""
    extra = {"response_format": {"type": "json_object"}, "logit_bias": {"233": 100}}  # }
    reply = client.completions.create(model="m", prompt=STORY, max_tokens=LONG, temperature=0, extra_body=extra)
    assert reply.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(reply.choices[0].text), dict)


def jobs(server: ServerProcess, count: int) -> list[dict]:
    """Many at once, with and without forms, over shared prefixes and several chunks."""
    forms = [
        {"json_schema": json.dumps(SCHEMA), "logit_bias": NO_BLANKS, "temperature": 0},
        {"json_schema": json.dumps(SCHEMA), "logit_bias": NO_BLANKS, "sampling_seed": 3},
        {"regex": "[0-9]{2,4} (apples|pears)", "sampling_seed": 4, "top_p": 0.9},
        {"ebnf": 'root ::= "yes" | "no" " " [a-z]{3}', "temperature": 0, "frequency_penalty": 0.5},
        {"temperature": 0, "max_new_tokens": 30},
        {"temperature": 0, "max_new_tokens": 30, "thinking_budget": 4},
    ]

    def ask(i: int) -> dict:
        text = STORY * (1 + i % 3)
        return generate(server, f"{text}<|channel>thought\nI" if i % 6 == 5 else text, **forms[i % 6])

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, range(count)))


def check(answers: list[dict]) -> None:
    for i, answer in enumerate(answers):
        text = answer["text"]
        match i % 6:
            case 0 | 1:
                Reply.model_validate_json(text)
            case 2:
                assert re.fullmatch("[0-9]{2,4} (apples|pears)", text)
            case 3:
                assert re.fullmatch("yes|no [a-z]{3}", text)
            case 5:
                assert 101 in answer["output_ids"][:6], "the thought has ended"
        assert answer["meta_info"]["finish_reason"]["type"] == "stop" or i % 6 > 3
        assert len(answer["meta_info"]["output_token_logprobs"]) == len(answer["output_ids"])


@pytest.fixture(scope="module")
def answers(server):
    answers = jobs(server, 12)
    check(answers)
    return answers


def test_free_ones_are_left_alone(server, answers):
    alone = generate(server, STORY * 2, temperature=0, max_new_tokens=30)
    assert answers[4]["output_ids"] == alone["output_ids"]


DRAFTS = "--speculative-algorithm NEXTN"
TREE = f"{DRAFTS} --speculative-num-steps 3 --speculative-eagle-topk 2 --speculative-num-draft-tokens 6"


@pytest.mark.parametrize("flags", ["--tp-size 2", *([f"--tp-size 2 {TREE}", DRAFTS] if is_weekly() else [])])
def test_ranks_and_drafts_change_no_answer(answers, flags):
    with ServerProcess(MODULE, *FLAGS, *flags.split(), timeout=180) as other:
        got = jobs(other, 6 if "NEXTN" in flags else 12)
        bad = other.client.post("/generate", json={"text": "a", "sampling_params": {"regex": "(a"}})
        assert bad.status_code == 400 and "position 3" in bad.json()["message"]
        stopped = generate(other, regex="abc[0-9]{5}", stop=["c"])
        assert stopped["text"] == "ab" and stopped["meta_info"]["finish_reason"]["matched"] == "c"
        state, compiler = other.internal_state(), other.children()["xgrammar_compile"]
    assert [g["output_ids"] for g in got] == [w["output_ids"] for w in answers[: len(got)]]
    wait_for(lambda: not psutil.pid_exists(compiler), 30.0)
    if "NEXTN" in flags:
        assert state["avg_spec_accept_length"] > 1.03, "drafts are accepted in forms too"


@pytest.mark.parametrize(
    "extra,message",
    [
        ({"regex": "(a"}, "Regex parsing error at position 3"),
        ({"ebnf": "root ::= x"}, "line 1, column 10"),
        ({"json_schema": {"type": "foo"}}, 'Unsupported type "foo"'),
        (
            {
                "tools": [{"function": {"name": "f", "parameters": {"properties": {"x": {"type": "foo"}}}}}],
                "regex": "a",
            },
            "tools[0].function.parameters.properties.x.type is 'foo'",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused(client, extra, message, stream):
    with pytest.raises(openai.BadRequestError, match=re.escape(message).replace('"', r'\\?"')):
        client.chat.completions.create(model="m", messages=ASK, stream=stream, extra_body=extra)


def test_tools_that_may_not_be_called_are_no_hindrance(client):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    extra = {"regex": "[0-9]{3}", "tools": tools, "tool_choice": "none"}
    reply = client.chat.completions.create(model="m", messages=ASK, extra_body=extra).choices[0]
    assert re.fullmatch("[0-9]{3}", reply.message.content)


WEATHER = {
    "type": "object",
    "properties": {
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["city", "unit"],
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
BEGIN, CALL_END, RESULT = "48", "49", "50"  # <|tool_call>, <tool_call|>, <|tool_response>


def check_calls(choice, names: set[str]) -> None:
    assert choice.finish_reason == "tool_calls" and not choice.message.content
    assert choice.message.tool_calls and {c.function.name for c in choice.message.tool_calls} <= names
    for c in choice.message.tool_calls:
        arguments = json.loads(c.function.arguments)
        if c.function.name == "now":
            assert arguments == {}
        else:
            assert arguments.keys() in ({"city", "unit"}, {"city", "unit", "days"})
            assert arguments["unit"] in ("celsius", "fahrenheit") and len(arguments["city"]) <= 12
            assert 1 <= arguments.get("days", 1) <= 14


@pytest.mark.parametrize(
    "choice,names,extra",
    [
        ("required", {"get_weather", "now"}, {}),
        ({"type": "function", "function": {"name": "get_weather"}}, {"get_weather"}, {}),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": TOOLS[1:]}}, {"now"}, {}),
        ("required", {"get_weather", "now"}, {"chat_template_kwargs": {"enable_thinking": True}}),
    ],
)
def test_a_call_is_made_where_one_must_be(client, choice, names, extra):
    """A result is made likely behind a call: this model may go on to call for ever. So is a thought's end."""
    extra = {"logit_bias": {RESULT: 100, CALL_END: 50, "101": 99}} | extra
    reply = client.chat.completions.create(
        model="m", messages=ASK, tools=TOOLS, tool_choice=choice, n=3, seed=5, max_tokens=LONG, extra_body=extra
    )
    for answer in reply.choices:
        check_calls(answer, names)


def test_calls_in_a_stream_and_one_a_turn(client):
    for parallel in (True, False):
        with client.chat.completions.stream(
            model="m", messages=ASK, tools=TOOLS, tool_choice="required", parallel_tool_calls=parallel, seed=1,
            max_tokens=LONG, logit_bias={CALL_END: 50, BEGIN: -3},
        ) as events:  # fmt: skip
            answer = events.get_final_completion().choices[0]
        check_calls(answer, {"get_weather", "now"})
        assert parallel or len(answer.message.tool_calls) == 1


def test_strict_tools_leave_the_text_free(client):
    """The same answer as without, until a call begins; that has its form."""
    strict = [{"type": "function", "function": TOOLS[0]["function"] | {"strict": True}}, TOOLS[1]]
    options = {"model": "m", "messages": ASK, "temperature": 0, "max_tokens": 60}
    free = client.chat.completions.create(**options, tools=TOOLS).choices[0]
    assert client.chat.completions.create(**options, tools=strict).choices[0].message == free.message
    options |= {"max_tokens": LONG, "logit_bias": {BEGIN: 100}, "parallel_tool_calls": False}  # a call begins at once
    check_calls(client.chat.completions.create(**options, tools=strict[:1]).choices[0], {"get_weather"})


def test_a_structural_tag(client, server):
    """Both endpoints, both ways of writing it."""
    parts = [{"type": "const_string", "value": "It is "}, {"type": "regex", "pattern": "[0-9]{3}"}]
    form = {"type": "structural_tag", "format": {"type": "sequence", "elements": parts}}
    answer = client.chat.completions.create(model="m", messages=ASK, extra_body={"response_format": form}).choices[0]
    assert re.fullmatch("It is [0-9]{3}", answer.message.content)
    tag = {"structures": [{"begin": "<r>", "schema": SCHEMA, "end": "</r>"}], "triggers": ["<r>"]}
    reply = generate(server, STORY + "<r", structural_tag=json.dumps(tag), max_new_tokens=20)
    assert reply["output_ids"]


def test_a_form_and_tools(client):
    """An answer in the form, or calls."""
    options = {"model": "m", "messages": ASK, "tools": TOOLS, "response_format": FORM, "max_tokens": LONG}
    answer = client.chat.completions.create(**options, logit_bias=NO_BLANKS | {BEGIN: -100}).choices[0]
    Reply.model_validate_json(answer.message.content)
    assert answer.finish_reason == "stop"
    called = client.chat.completions.create(**options, logit_bias={BEGIN: 100, RESULT: 100, CALL_END: 50}).choices[0]
    check_calls(called, {"get_weather", "now"})


def test_calls_over_the_other_apis(server):
    """anthropic's `any` and `tool`, and Responses'."""
    extra = {"stop_token_ids": [int(CALL_END)]}
    tools = [{"name": "get_weather", "input_schema": WEATHER, "strict": True}, {"name": "now", "input_schema": {}}]
    for choice in ({"type": "any"}, {"type": "tool", "name": "now"}):
        body = {"model": "m", "messages": ASK, "max_tokens": LONG, "tools": tools, "tool_choice": choice} | extra
        message = server.client.post("/v1/messages", json=body).json()
        assert message["stop_reason"] == "tool_use", message
        assert [block["type"] for block in message["content"]] == ["tool_use"]
        assert choice["type"] == "any" or message["content"][0]["name"] == "now"
    tools = [{"type": "function"} | tool["function"] for tool in TOOLS]
    for choice in ("required", {"type": "function", "name": "now"}):
        body = {"input": STORY, "max_output_tokens": LONG, "tools": tools, "tool_choice": choice} | extra
        output = server.client.post("/v1/responses", json=body).json()["output"]
        assert [item["type"] for item in output] == ["function_call"]
        assert choice == "required" or output[0]["name"] == "now"


def test_behind_a_thought(client):
    """The marks are made likely: a thought begins, ends at once, and what follows it has the form."""
    marks = {"100": 100, "101": 99}  # <|channel>, <channel|>
    extra = {"regex": "[0-9]{3}", "chat_template_kwargs": {"enable_thinking": True}, "logit_bias": marks}
    reply = client.chat.completions.create(model="m", messages=ASK, max_tokens=60, extra_body=extra)
    assert reply.usage.completion_tokens == 6 and reply.usage.model_extra["reasoning_tokens"] == 2
    assert re.fullmatch("[0-9]{3}", reply.choices[0].message.content)
    extra["chat_template_kwargs"] = {}
    reply = client.chat.completions.create(model="m", messages=ASK, max_tokens=60, extra_body=extra)
    assert reply.usage.completion_tokens == 4, "no thought was wanted"


BEGUN = [*ASK, {"role": "assistant", "content": "<|channel>thought\nMia has"}]  # no end of it is in sight


@pytest.mark.parametrize("budget", [0, 1, 7])
def test_a_thought_ends_with_its_budget(client, budget):
    extra = {"thinking_budget": budget, "continue_final_message": True}
    reply = client.chat.completions.create(
        model="m", messages=BEGUN, max_tokens=40, n=2, seed=1, logprobs=True, top_logprobs=2, extra_body=extra
    )
    for choice in reply.choices:
        ids = [entry.token for entry in choice.logprobs.content]
        end = ids.index("<channel|>")
        assert end <= budget + 1 and ids[end - 1 : end] in (["\n"], [])
        assert choice.logprobs.content[end].logprob == 0 or end < budget
        assert choice.message.content
        assert choice.message.reasoning_content or budget == 0
    assert reply.usage.model_extra["reasoning_tokens"] <= 2 * (budget + 2)


def test_a_form_follows_the_thought_that_was_ended(client):
    extra = {"thinking_budget": 3, "continue_final_message": True, "regex": "[0-9]{3}"}
    reply = client.chat.completions.create(model="m", messages=BEGUN, max_tokens=40, extra_body=extra)
    assert re.fullmatch("[0-9]{3}", reply.choices[0].message.content)
    assert reply.usage.completion_tokens <= 3 + 2 + 3 + 1


def test_generate_waits_for_the_thought_if_so_asked(server):
    params = {"max_new_tokens": 20, "temperature": 0, "regex": "[0-9]{3}", "logit_bias": {"101": 100}}
    body = {"text": f"{STORY}<|channel>thought\nI", "sampling_params": params, "require_reasoning": True}
    answer = server.client.post("/generate", json=body).json()
    assert answer["output_ids"][0] == 101 and answer["meta_info"]["completion_tokens"] == 5
    assert answer["meta_info"]["reasoning_tokens"] == 1


@pytest.mark.parametrize("field", ["sampling_params", "max_thinking_tokens", "custom_params"])
def test_the_names_of_a_budget(server, field):
    params = {"max_new_tokens": 20, "temperature": 0}
    body = {"text": f"{STORY}<|channel>thought\nI", "sampling_params": params}
    match field:
        case "sampling_params":
            params["thinking_budget"] = 2
        case "custom_params":
            params["custom_params"] = {"thinking_budget": 2}
        case _:
            body["max_thinking_tokens"] = 2
    assert 101 in server.client.post("/generate", json=body).json()["output_ids"][:4]


@pytest.mark.parametrize(
    "extra,message",
    [
        ({"max_thinking_tokens": -1}, "thinking_budget must be an integer from 0"),
        ({"max_thinking_tokens": 3, "sampling_params": {"thinking_budget": 4}}, "they mean the same"),
        ({"max_thinking_tokens": [3]}, "max_thinking_tokens is a list, but there is one prompt"),
        ({"sampling_params": {"thinking_budget": 1.5}}, "got 1.5"),
    ],
)
def test_budgets_that_are_refused(server, extra, message):
    reply = server.client.post("/generate", json={"text": "a", **extra})
    assert reply.status_code == 400 and message in reply.json()["message"]


def test_budgets_of_a_batch(server):
    text = f"{STORY}<|channel>thought\nI"
    params = {"max_new_tokens": 20, "temperature": 0}
    body = {"text": [text] * 3, "sampling_params": params, "max_thinking_tokens": [0, 3, None]}
    answers = server.client.post("/generate", json=body).json()
    ids = [answer["output_ids"] for answer in answers]
    assert [a["meta_info"]["reasoning_tokens"] for a in answers[:2]] == [got.index(101) + 1 for got in ids[:2]]
    ends = [got.index(101) if 101 in got else None for got in ids]
    assert ends[0] <= 1 and 1 < ends[1] <= 4 and (ends[2] is None or ends[2] > 4)


def test_stop_strings_cut_a_form(server):
    answer = generate(server, regex="abc[0-9]{5}", stop=["c"])
    assert answer["text"] == "ab" and answer["meta_info"]["finish_reason"]["matched"] == "c"


def test_an_aborted_one_frees_its_place(server):
    body = {"text": STORY, "stream": True, "sampling_params": {"max_new_tokens": 3000, "regex": "a*"}}
    with server.client.stream("POST", "/generate", json=body) as reply:
        next(reply.iter_lines())
    assert generate(server, regex="[0-9]{3}")["meta_info"]["completion_tokens"] == 4


def test_servers_without_grammars():
    with ServerProcess(MODULE, "--device", "cpu", "--grammar-backend", "none") as server:
        reply = server.client.post("/generate", json={"text": "a", "sampling_params": {"regex": "a"}})
        assert reply.status_code == 400 and "--grammar-backend none" in reply.json()["message"]


WAYS = ["--disable-overlap-schedule --grammar-backend llguidance", f"--enable-deterministic-inference {DRAFTS}"]


@pytest.mark.parametrize("flags", WAYS if is_weekly() else WAYS[:1])
def test_other_ways_to_run(flags):
    with ServerProcess(MODULE, *FLAGS, *flags.split(), timeout=180) as server:
        check(jobs(server, 6))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
