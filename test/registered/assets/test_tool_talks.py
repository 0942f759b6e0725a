"""The talks that teach the shipped model tools, thoughts and JSON: their text is the chat template's, their test sets
hold nothing that training sees."""

import json
import random
import sys
from functools import cache
from itertools import islice
from pathlib import Path

import pytest

import sglang
from sglang.srt.parser.events import CallArguments, CallEnd, CallStart
from sglang.srt.parser.gemma4 import Gemma4Parser, split_marks
from sglang.test.ci.ci_register import register_cpu_ci

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts/train_model"))
from make_tool_talks import form_row, talk_row
from tool_talks import talks, test_calls, test_forms, test_loops
from tool_talks.talk import Talk, Turn, call_text, messages, spans
from tool_talks.vocabulary import ANY_WORD, held
from word_problems import problems

register_cpu_ci(est_time=15, suite="base-a-test-cpu")

PACKAGE = Path(sglang.__path__[0])
MODEL = PACKAGE / "assets/gemma-4-mini-it"
DATA = PACKAGE / "test/data"


@cache
def template():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return lambda chat, **more: tokenizer.apply_chat_template(chat, tokenize=False, **more)


def ask(thinking: bool) -> tuple[str, str, str]:
    return "Hello", "No steps are needed." if thinking else "", "Hello!"


@cache
def some(count: int = 400) -> list[Talk]:
    return list(islice(talks(5, ask, problems(5)), count))


def declared(talk: Talk) -> dict:
    return {"tools": [tool.declaration() for tool in talk.tools] or None, "enable_thinking": talk.thinking}


def test_text_is_the_templates():
    for talk in some():
        text = "".join(text for text, _ in spans(talk, 0.1))
        assert text == template()(messages(talk), **declared(talk)), talk


def test_the_model_writes_what_follows_its_prompts():
    """What has weight begins where the server's prompt ends, and ends with a token that stops it."""
    for talk in some(60):
        chat, pieces = messages(talk), spans(talk, 0.1)
        own = [i for i, (_, weight) in enumerate(pieces) if weight == 1.0]
        ends = [i for i, message in enumerate(chat) if message["role"] == "assistant"][-len(own) :]
        for i, end in zip(own, ends, strict=True):
            prompt = template()(chat[:end], add_generation_prompt=True, **declared(talk))
            before = "".join(text for text, _ in pieces[:i])
            # With thinking on, the prompt behind a result opens the thought.
            assert prompt in (before, before + "<|channel>thought\n")
            assert (before + pieces[i][0]).startswith(prompt)
            assert pieces[i][0].endswith(("<|tool_response>", "<turn|>"))


def test_history_without_thoughts_teaches_nothing():
    talk = Talk([Turn("One?", [], "So.", "1"), Turn("Two?", [], "So so.", "2")], [], thinking=True)
    assert [(t, w) for t, w in spans(talk, 0.0) if w or "1" in t] == [
        ("1<turn|>", 0.0),
        ("<|channel>thought\nSo so.\n<channel|>2<turn|>", 1.0),
    ]


def test_calls_read_back():
    """What the talks write is what the server's parser reads."""
    for talk in some():
        for step in (step for turn in talk.turns for step in turn.steps):
            events = Gemma4Parser().push(split_marks("".join(map(call_text, step.calls))), final=True)
            starts = [e.name for e in events if isinstance(e, CallStart)]
            assert starts == [name for name, _ in step.calls]
            assert sum(isinstance(e, CallEnd) for e in events) == len(starts)
            for i, (_, arguments) in enumerate(step.calls):
                text = "".join(e.text for e in events if isinstance(e, CallArguments) and e.index == i)
                assert json.loads(text) == arguments


def test_calls_fit_their_declarations():
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list}
    for talk in some():
        tools = {tool.name: tool for tool in talk.tools}
        assert len(tools) == len(talk.tools) <= 4
        for name, arguments in (call for turn in talk.turns for step in turn.steps for call in step.calls):
            tool = tools[name]
            assert set(tool.required) <= set(arguments) <= set(tool.properties)
            for key, value in arguments.items():
                schema = tool.properties[key]
                assert isinstance(value, kinds[schema["type"]]) and value in schema.get("enum", [value])


def names_and_texts(tools: list[dict]) -> list[str]:
    out = []
    for tool in tools:
        properties = tool["parameters"]["properties"]
        out += [tool["name"], tool["description"], *properties]
        out += [schema.get("description", "") for schema in properties.values()]
    return [text for text in out if text]


@pytest.mark.parametrize("name", ["mini_tool_calls", "mini_tool_loops"])
def test_held_out_of_training(name: str):
    rows = [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()]
    assert all(held(text) for row in rows for text in names_and_texts(row["tools"]))
    trained = [text for talk in some() for text in names_and_texts([t.declaration()["function"] for t in talk.tools])]
    assert not any(map(held, trained))


def test_held_out_keys():
    rows = [json.loads(line) for line in (DATA / "mini_forms.jsonl").read_text().splitlines()]
    assert all(held(key) for row in rows for key in row["value"])
    answers = [talk.turns[-1].answer for talk in some() if not talk.tools]
    trained = [key for answer in answers if answer.startswith("{") for key in json.loads(answer)]
    assert len(trained) > 100 and not any(map(held, trained))


def test_held_words_are_copied_in_training():
    """No word the test sets use is strange to the model: only whole names are."""
    text = " ".join("".join(text for text, _ in spans(talk, 0.0)) for talk in some())
    kept = [word for word in ANY_WORD if held(word)]
    assert sum(word in text for word in kept) > 0.8 * len(kept) > 50


@pytest.mark.parametrize(
    ("name", "stream", "row"),
    [
        ("mini_tool_calls", test_calls, talk_row),
        ("mini_tool_loops", test_loops, talk_row),
        ("mini_forms", test_forms, form_row),
    ],
)
def test_sets_are_the_generators(name: str, stream, row):
    lines = (DATA / f"{name}.jsonl").read_text().splitlines()
    assert len(lines) >= 150
    made = [json.dumps(row(*item), ensure_ascii=False) for item in islice(stream(1), len(lines))]
    assert made == lines


def test_seeded():
    def first(seed: int) -> list[Talk]:
        return list(islice(talks(seed, ask, problems(1)), 5))

    random.seed()
    assert first(3) == first(3) != first(4)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
