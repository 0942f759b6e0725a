"""A chat request's prompt is what transformers renders for the same messages in the form that templates read."""

import json
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sglang
from sglang.assets import shipped_model_path
from sglang.srt.entrypoints.chat_prompt import ROLES, Turn, chat_prompt
from sglang.srt.managers.generation import RequestError
from sglang.srt.utils.chat_template import ChatTemplate
from sglang.srt.utils.tokenizer import Tokenizer
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.tiny_tokenizer import make_model_folder

register_cpu_ci(est_time=8, suite="unit-test-cpu")

HERE = Path(__file__).parent
VECTORS = json.loads(
    (HERE / "gemma4_chats.json").read_text()
)  # what Gemma 4's published template (small models) writes
SHIPPED = (shipped_model_path() / "chat_template.jinja").read_text()

# Templates that read content in one way each; calls and answers are written so that every field shows.
CALLS = """{% for c in m.tool_calls or [] %}[call {{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}
{%- for k, v in c.function.arguments.items() %} {{ k }}={{ v }}{% endfor %}]{% endfor %}"""
ANSWERER = "{% if m.role == 'tool' %} of {{ m.name }} to {{ m.tool_call_id }}{% endif %}"
HEAD = "{{ bos_token }}{% for m in messages %}<{{ m.role }}" + ANSWERER + ">"
TAIL = CALLS + "\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
STRINGS = HEAD + "{{ m.content | trim }}" + TAIL
ADDS_STRINGS = HEAD + "{{ 'says: ' + m.content }}" + TAIL
LISTS = (
    HEAD + "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}({{ part.text }}){% endfor %}{% endif %}" + TAIL
)
FIRST_SYSTEM_PART = (  # as Gemma 3's: of a system message's list only the first part is read
    HEAD + "{% set c = m.content %}{% if c is string %}{{ c }}{% elif m.role == 'system' %}{{ c[0].text }}{% else %}"
    "{% for part in c %}{{ part.text | trim }}{% endfor %}{% endif %}" + TAIL
)
MAPPINGS = (
    HEAD + "{% if m.content is mapping %}{% for k, v in m.content | dictsort %}{{ k }}:{{ v }};{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}" + TAIL
)
ALL = {"system", "developer", "user", "assistant"}
# template, roles whose lists it reads, whether it reads mappings: known by writing them, not by asking our code
TEMPLATES = {
    "strings": (STRINGS, set(), False),
    "adds strings": (ADDS_STRINGS, set(), False),
    "lists": (LISTS, ALL, False),
    "first system part": (FIRST_SYSTEM_PART, ALL - {"system"}, False),
    "mappings": (MAPPINGS, set(), True),
    "shipped": (SHIPPED, ALL, True),
}


@pytest.fixture(scope="module")
def hf_tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(make_model_folder(tmp_path_factory.mktemp("m")))


def make_template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<bos>"})


def prompt_of(source: str, messages: list, **fields) -> str:
    body = msgspec.convert({"messages": messages, **fields}, Turn)
    return chat_prompt(body, make_template(source), {})


# ---- forms of content -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_reads_is_seen_by_trying(name):
    source, list_roles, reads_mappings = TEMPLATES[name]
    template = make_template(source)
    assert (template.list_roles, template.reads_mappings) == (list_roles, reads_mappings)
    assert template.writes_content_after_results == (name == "shipped")


def test_a_template_that_refuses_everything_reads_nothing():
    template = make_template("{{ raise_exception('no') }}")
    assert not template.list_roles and not template.reads_mappings and not template.writes_content_after_results


texts = st.text(st.sampled_from("ab \n\"'{}<|>:,é🙂\\"), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(st.text("abcXY_", min_size=1, max_size=4), json_values, max_size=3)
part_texts = st.lists(texts, min_size=1, max_size=3)


@st.composite
def conversations(draw, list_roles: set, reads_mappings: bool, content_beside_calls: bool = True):
    """(on the wire, as the template reads it)."""
    wire, meant = [], []

    def add(role: str, content, **fields) -> None:
        wire.append({"role": role, "content": content})
        if isinstance(content, list):
            pieces = [part if isinstance(part, str) else part["text"] for part in content]
            content = content if role in list_roles else " ".join(pieces)
        elif isinstance(content, dict):
            content = content if reads_mappings else json.dumps(content, ensure_ascii=False)
        meant.append({"role": role, "content": "" if content is None else content, **fields})

    def text_or_parts():
        return draw(texts | part_texts.map(lambda all: [{"type": "text", "text": text} for text in all]))

    def add_tool_loop(first_id: int) -> None:
        count = draw(st.integers(1, 3))
        calls = []
        for k in range(count):
            function = {"name": draw(st.sampled_from(["f", "get_x"])), "arguments": draw(arguments)}
            calls.append({"id": f"c{first_id + k}", "type": "function", "function": function})
        add("assistant", text_or_parts() if content_beside_calls else None, tool_calls=calls)
        on_wire = [call | {"function": dict(call["function"])} for call in calls]
        for call in on_wire:
            values = call["function"]["arguments"]
            spelled = draw(st.sampled_from([json.dumps(values), json.dumps(values, indent=1), values]))
            call["function"]["arguments"] = draw(st.sampled_from(["", None, "{}"])) if not values else spelled
        wire[-1]["tool_calls"] = on_wire
        for call in draw(st.permutations(calls)):
            answers = texts | st.none() | part_texts | json_values.filter(lambda v: isinstance(v, dict))
            content = draw(answers)
            if isinstance(content, list) and draw(st.booleans()):
                content = [{"type": "text", "text": text} for text in content]
            named = draw(st.booleans())
            name = "given" if named else call["function"]["name"]
            add("tool", content, tool_call_id=call["id"], name=name)
            wire[-1] |= {"tool_call_id": call["id"]} | ({"name": "given"} if named else {})

    if draw(st.booleans()):
        add("system", text_or_parts())
    for turn in range(draw(st.integers(1, 3))):
        add("user", text_or_parts())
        for step in range(draw(st.integers(0, 2))):
            add_tool_loop(10 * turn + 3 * step)
        if draw(st.booleans()):
            add("assistant", draw(texts) if draw(st.booleans()) else text_or_parts())
    return wire, meant


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_equals_transformers(hf_tokenizer, name, data):
    source, list_roles, reads_mappings = TEMPLATES[name]
    wire, meant = data.draw(conversations(list_roles, reads_mappings, content_beside_calls=name != "shipped"))
    opened = data.draw(st.booleans())
    want = hf_tokenizer.apply_chat_template(meant, chat_template=source, tokenize=False, add_generation_prompt=opened)
    assert prompt_of(source, wire, add_generation_prompt=opened) == want


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_begun_answer_follows_the_prompt_as_it_is(hf_tokenizer, name, data):
    source, list_roles, reads_mappings = TEMPLATES[name]
    wire, meant = data.draw(conversations(list_roles, reads_mappings, content_beside_calls=name != "shipped"))
    begun = data.draw(part_texts)
    joined = ("" if "assistant" in list_roles else " ").join(begun)
    for content in (joined, [{"type": "text", "text": text} for text in begun]):
        got = prompt_of(source, [*wire, {"role": "assistant", "content": content}], continue_final_message=True)
        want = hf_tokenizer.apply_chat_template(meant, chat_template=source, tokenize=False, add_generation_prompt=True)
        assert got == want + joined


def test_an_open_thought_is_continued():
    begun = "<|channel>thought\nI think that "
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": begun}]
    got = prompt_of(SHIPPED, messages, continue_final_message=True)
    assert got == "<bos><|turn>user\nWhy?<turn|>\n<|turn>model\n" + begun
    assert prompt_of(SHIPPED, messages[1:], continue_final_message=True) == "<bos><|turn>model\n" + begun


# ---- Gemma 4's format -------------------------------------------------------------------------------------------


def on_the_wire(messages: list) -> list:
    """Arguments as JSON text, as OpenAI's clients send them."""
    copy = json.loads(json.dumps(messages))
    for call in (call for message in copy for call in message.get("tool_calls", [])):
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return copy


@pytest.mark.parametrize("chat", VECTORS["chats"], ids=lambda chat: chat["name"])
def test_shipped_template_writes_what_the_published_one_does(chat):
    tools = [tool for name in chat["tools"] for tool in VECTORS["tools"] if tool["function"]["name"] == name] or None
    variables = dict(chat["variables"])
    opened = variables.pop("add_generation_prompt", True)
    rendered = (
        Tokenizer(str(shipped_model_path())).require_chat_template().render(chat["messages"], tools, opened, variables)
    )
    assert rendered == chat["prompt"]
    if chat["messages"][-1].get("tool_calls"):  # which is refused where an answer is to follow, and written alike
        opened = False
    fields = {"tools": tools, "add_generation_prompt": opened, "chat_template_kwargs": variables}
    served = prompt_of(SHIPPED, on_the_wire(chat["messages"]), **fields)
    if "content and a call" in chat["name"]:  # the turn would be over before the model has answered
        head, call = chat["prompt"].split("<|tool_call>")
        assert served == head + "Let me check.<|tool_call>" + call.removesuffix("Let me check.<turn|>\n")
    else:
        assert served == chat["prompt"]


def test_the_training_scripts_write_the_same_template():
    checkout = Path(sglang.__file__).parents[2]
    assert (checkout / "scripts/train_model/chat_template.jinja").read_text() == SHIPPED


def call(name: str, number: int) -> dict:
    return {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": json.dumps({"n": number})}}


def test_content_beside_calls_stands_where_the_model_said_it():
    """In a loop that still runs. Each request then begins with the one before it: the prefix cache holds it."""
    messages = [
        {"role": "user", "content": "Go"},
        {"role": "assistant", "content": "First.", "tool_calls": [call("f", 1)]},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
    ]
    first = prompt_of(SHIPPED, messages)
    turn = 'First.<|tool_call>call:f{n:1}<tool_call|><|tool_response>response:f{value:<|"|>one<|"|>}<tool_response|>'
    assert first == "<bos><|turn>user\nGo<turn|>\n<|turn>model\n" + turn
    thinking = prompt_of(SHIPPED, messages, chat_template_kwargs={"enable_thinking": True})
    assert thinking.endswith(turn + "<|channel>thought\n")
    messages += [
        {"role": "assistant", "content": "Second.", "reasoning_content": "Hm.", "tool_calls": [call("g", 2)]},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
    ]
    second = prompt_of(SHIPPED, messages)
    assert second.startswith(first + "<|channel>thought\nHm.\n<channel|>Second.<|tool_call>call:g{n:2}")
    assert second.endswith("<tool_response|>")
    # Another template is not touched: content stands before the calls there anyway.
    assert "<assistant>First.[call c1" in prompt_of(STRINGS, messages)


# ---- refused ----------------------------------------------------------------------------------------------------


def history(arguments) -> list:
    one = call("f", 1)
    one["function"]["arguments"] = arguments
    return [
        {"role": "user", "content": "x"},
        {"role": "user", "content": "y"},
        {"role": "assistant", "content": None, "tool_calls": [one]},
    ]


@pytest.mark.parametrize(
    "arguments", ["{", "5", '"{}"', "[1]", "null", '{"a": NaN}', '{"a": Infinity}', "[" * 100_000, 5, [1], True]
)
def test_arguments_that_are_no_object_are_named(arguments):
    with pytest.raises(RequestError) as caught:
        prompt_of(SHIPPED, history(arguments))
    place = "messages[2].tool_calls[0].function.arguments"
    assert caught.value.param == place and caught.value.message.startswith(place)
    assert caught.value.status == 400 and len(caught.value.message) < 250


ASK = {"role": "user", "content": "Go"}
LAST = {"role": "assistant", "content": "Begun"}


@pytest.mark.parametrize(
    ("messages", "fields", "says"),
    [
        (
            [LAST | {"tool_calls": [call("f", 1)]}],
            {"continue_final_message": True},
            r"\[0\].tool_calls can't be contin",
        ),
        ([LAST | {"reasoning_content": "Hm"}], {"continue_final_message": True}, "reasoning_content can't be contin"),
        ([LAST, {"role": "user", "content": "x"}], {"continue_final_message": True}, "needs an assistant message"),
        ([LAST], {"continue_final_message": True, "add_generation_prompt": True}, "contradicts"),
        ([LAST | {"tool_calls": [{"id": "1"}]}], {}, r"tool_calls\[0\].function.name is missing"),
        ([LAST | {"tool_calls": [call("f", 1) | {"id": 5}]}], {}, r"tool_calls\[0\].id must be text"),
        ([{"role": "tool", "content": [{"type": "image_url"}]}], {}, "only parts of type text"),
        ([{"role": "user", "content": {"a": 1}}], {}, "content must be text or a list of parts"),
        ([{"role": "user", "content": ["bare"]}], {}, "only parts of type text"),
        ([{"role": "tool", "content": "5", "tool_call_id": {}}], {}, "tool_call_id must be text"),
        ([LAST | {"reasoning": 5}], {}, r"messages\[0\].reasoning must be text"),
        ([LAST | {"reasoning_content": ["a"]}], {}, "reasoning_content must be text"),
        ([ASK], {"reasoning_effort": "much"}, "the reasoning effort is 'much'; one of none, minimal"),
    ],
)
def test_refused_in_words_of_our_own(messages, fields, says):
    with pytest.raises(RequestError, match=says) as caught:
        prompt_of(SHIPPED, messages, **fields)
    assert caught.value.status == 400


CALLED = {"role": "assistant", "content": None, "tool_calls": [call("f", 1), call("g", 2)]}


def result(number: int, content="5") -> dict:
    return {"role": "tool", "tool_call_id": f"c{number}", "content": content}


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([result(1)], "messages[0] is a tool's result, but no call stands before it"),
        ([ASK, LAST, result(1)], "messages[2] is a tool's result, but no call stands before it"),
        ([ASK, CALLED, result(3)], "messages[2].tool_call_id is 'c3', but the calls before it are 'c1', 'c2'"),
        ([ASK, CALLED], "messages[1].tool_calls[0] ('c1') has no result"),
        ([ASK, CALLED, result(1), ASK], "messages[1].tool_calls[1] ('c2') has no result"),
        ([ASK, CALLED, result(1), result(1)], "messages[1].tool_calls[1] ('c2') has no result"),
        ([ASK, CALLED, CALLED, result(1), result(2)], "messages[1].tool_calls[0] ('c1') has no result"),
        ([ASK, CALLED, result(2), result(1), ASK, result(1)], "messages[5] is a tool's result"),
    ],
)
@pytest.mark.parametrize("template", ["shipped", "strings"])
def test_a_history_with_a_gap_is_refused(template, messages, says):
    with pytest.raises(RequestError) as caught:
        prompt_of(TEMPLATES[template][0], messages)
    assert caught.value.message.startswith(says) and caught.value.status == 400


def test_results_come_in_any_order_and_by_no_name():
    two = [ASK, CALLED, result(2, "two"), result(1, "one")]
    assert 'response:g{value:<|"|>two<|"|>}' in prompt_of(SHIPPED, two)
    unnamed = {"role": "tool", "content": "5"}
    assert prompt_of(SHIPPED, [ASK, CALLED, unnamed, unnamed]).count("response:unknown{") == 2
    no_ids = {**CALLED, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    assert "response:unknown{" in prompt_of(SHIPPED, [ASK, no_ids, result(1)])
    answered = CALLED | {"tool_responses": [{"name": "f", "response": {"a": 1}}]}
    assert "response:f{a:1}" in prompt_of(SHIPPED, [ASK, answered, ASK])


@pytest.mark.parametrize(
    ("content", "written"),
    [
        ({"sky": "rain", "hist": [1, 2.5]}, '{hist:[1,2.5],sky:<|"|>rain<|"|>}'),
        ([{"sky": "rain"}, {"sky": None}], '{value:<|"|>[{"sky": "rain"}, {"sky": null}]<|"|>}'),
        ([1, 2], '{value:<|"|>[1, 2]<|"|>}'),
        (5, '{value:<|"|>5<|"|>}'),
        (True, '{value:<|"|>true<|"|>}'),
        (None, '{value:<|"|><|"|>}'),
        ([], '{value:<|"|><|"|>}'),
        (["a", {"type": "text", "text": "b"}], '{value:<|"|>a b<|"|>}'),
    ],
)
def test_results_of_any_json(content, written):
    one = {**CALLED, "tool_calls": [call("f", 1)]}
    assert f"response:f{written}<tool_response|>" in prompt_of(SHIPPED, [ASK, one, result(1, content)])


def test_a_thought_comes_back_by_either_name():
    """And is written as the template has it: in the running loop."""
    one = {**CALLED, "tool_calls": [call("f", 1)]}
    prompts = [
        prompt_of(SHIPPED, [ASK, one | thought, result(1)])
        for thought in (
            {"reasoning": "Hm."},
            {"reasoning_content": "Hm."},
            {"reasoning": "", "reasoning_content": "Hm."},
        )
    ]
    assert len(set(prompts)) == 1 and "<|channel>thought\nHm.\n<channel|><|tool_call>" in prompts[0]
    assert "Hm." not in prompt_of(SHIPPED, [ASK, LAST | {"reasoning": "Hm."}, ASK])


@pytest.mark.parametrize(
    ("effort", "kwargs", "defaults", "thinks"),
    [
        (None, None, {}, False),
        (None, None, {"enable_thinking": True}, True),
        ("none", None, {"enable_thinking": True}, False),
        ("low", None, {}, True),
        ("high", None, {"enable_thinking": False}, True),
        ("high", {"enable_thinking": False}, {}, False),
        ("none", {"enable_thinking": True}, {}, True),
    ],
)
def test_an_effort_lets_the_model_think(effort, kwargs, defaults, thinks):
    turn = Turn(messages=[ASK], reasoning_effort=effort, chat_template_kwargs=kwargs)
    assert ("<|think|>" in chat_prompt(turn, make_template(SHIPPED), defaults)) is thinks


odd = st.sampled_from(
    [None, "", "x", 5, True, [], {}, ["x"], [5], [None], {"a": 1}, [{"type": "text"}], "{}", "c1", "c2"]
)
ids = st.sampled_from(["c1", "c2", "c3"])
any_calls = st.lists(
    st.builds(lambda n: call("f", n), st.integers(1, 3))
    | st.fixed_dictionaries(
        {"function": st.fixed_dictionaries({"name": ids}, optional={"arguments": odd})}, optional={"id": ids}
    )
    | odd,
    max_size=3,
)
any_messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from([*ROLES, "User", "function", None, 5])},
        optional={
            "content": odd | st.just([{"type": "text", "text": "t"}]),
            "tool_calls": any_calls | odd,
            "tool_call_id": ids | odd,
            "name": st.just("f") | odd,
            "reasoning": odd,
            "reasoning_content": odd,
            "tool_responses": odd,
        },
    ),
    max_size=5,
)


@settings(max_examples=400, deadline=None)
@given(any_messages, st.booleans(), st.sampled_from(["shipped", "strings", "mappings"]))
def test_any_history_is_written_or_refused(messages, continued, template):
    try:
        prompt_of(TEMPLATES[template][0], messages, continue_final_message=continued)
    except RequestError as e:
        assert e.status == 400 and e.message


def test_any_failure_of_a_template_is_a_refusal():
    deep: dict = {}
    for _ in range(3000):
        deep = {"properties": {"a": deep}}
    with pytest.raises(RequestError, match="nested too deeply"):
        prompt_of(SHIPPED, [{"role": "user", "content": "x"}], tools=[{"function": {"name": "f", "parameters": deep}}])
    for source in ("{{ 1 / 0 }}", "{{ [][1].x }}", "{{ raise_exception('x' * 100000) }}", "{% for %}"):
        with pytest.raises(RequestError, match="the chat template refuses") as caught:
            prompt_of(source, [{"role": "user", "content": "x"}])
        assert len(caught.value.message) < 400


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
