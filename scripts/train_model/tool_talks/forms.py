"""JSON objects asked for: the keys in words or as a schema, the values from the text. The answer is one line of JSON."""

import json
from dataclasses import dataclass
from typing import Any

from word_problems.core import Problem

from tool_talks.vocabulary import FIELDS, OPTIONS, SWITCHES, Draw, held, listed


@dataclass(frozen=True)
class Form:
    question: str
    schema: dict
    value: dict[str, Any]

    @property
    def answer(self) -> str:
        return json.dumps(self.value, ensure_ascii=False)


@dataclass(frozen=True)
class Entry:
    key: str
    schema: dict
    value: Any
    said: str  # the value in words
    called: str  # the key in words


def entry(draw: Draw, taken: set[str]) -> Entry:
    dice = draw.random()
    words = [draw.word(SWITCHES if dice < 0.12 else FIELDS, 0.2)]
    if draw.random() < 0.2:
        words.append(draw.any("name", "id", "value", "type", "code", "number", "date"))
    while words[0] in taken:
        words = [draw.word(FIELDS, 0.2)]
    taken.add(words[0])
    while held(key := draw.joined(words)) != draw.test:
        words = [words[0], draw.made_up()]
    called = key if draw.random() < 0.4 else " ".join(words)
    if dice < 0.12:
        on = draw.chance(0.5)
        return Entry(
            key, {"type": "boolean"}, on, draw.any(("yes", "no"), ("yes", "no"), ("true", "false"))[not on], called
        )
    if dice < 0.45:
        number = draw.number()
        kind = "integer" if isinstance(number, int) and draw.random() < 0.5 else "number"
        return Entry(key, {"type": kind}, number, str(number), called)
    if dice < 0.53:
        items = [draw.text() if draw.random() < 0.7 else draw.made_up() for _ in range(draw.int(2, 3))]
        return Entry(key, {"type": "array", "items": {"type": "string"}}, items, listed(items), called)
    if dice < 0.58:
        numbers = [draw.int(0, 999) for _ in range(draw.int(2, 4))]
        return Entry(
            key, {"type": "array", "items": {"type": "integer"}}, numbers, listed([str(n) for n in numbers]), called
        )
    if dice < 0.66:
        options = list(dict.fromkeys(draw.word(OPTIONS) for _ in range(draw.int(2, 3))))
        value = draw.pick(options)
        return Entry(key, {"type": "string", "enum": options}, value, value, called)
    text = draw.text()
    return Entry(key, {"type": "string"}, text, text, called)


def facts(draw: Draw, entries: list[Entry]) -> str:
    style = draw.random()
    if style < 0.3:
        return draw.any(", ", "; ", "\n", ", ").join(f"{e.called}: {e.said}" for e in entries)
    if style < 0.65:
        lead = draw.any("The", "The", "Its")
        return " ".join(f"{lead} {e.called} is {e.said}." for e in entries)
    if style < 0.8:
        return (
            f"{draw.any('There is a record with', 'It has', 'We have an entry with', 'I know this:')} "
            + listed([f"{e.called} {e.said}" for e in entries])
            + "."
        )
    return ", ".join(f"{e.called} = {e.said}" for e in entries)


def request(draw: Draw, wanted: list[Entry], schema: dict) -> str:
    keys = listed([e.key for e in wanted])
    style = draw.random()
    if style < 0.15:
        return draw.any(
            "Fill this schema: ", "Answer with JSON of this schema: ", "Use the JSON schema ", "Schema: "
        ) + json.dumps(schema, ensure_ascii=False)
    if style < 0.3:
        form = ", ".join(f'"{e.key}": {e.schema["type"]}' for e in wanted)
        return draw.any("Use this form: ", "Fill in: ", "Answer as JSON: ", "Format: ") + "{" + form + "}"
    if style < 0.4:
        form = ", ".join(f"{e.key} ({e.schema['type']})" for e in wanted)
        return draw.any("Give JSON with the keys ", "JSON, keys: ", "Return a JSON object with ") + form + "."
    return draw.any(
        f"Give a JSON object with the keys {keys}.", f"Answer in JSON with {keys}.", f"Reply with JSON. Keys: {keys}.", f"Extract {keys} as JSON.",
        f"Return JSON with the fields {keys}.", f"Write it as JSON with the keys {keys}.", f"I need {keys} as a JSON object.", f"Make a JSON object of {keys}.",
        f"Fill a JSON object with {keys}.", f"As JSON, please: {keys}.",
    )  # fmt: skip


def form(draw: Draw) -> Form:
    taken: set[str] = set()
    entries: list[Entry] = []
    for _ in range(draw.int(1, 5)):
        one = entry(draw, taken)
        if one.key not in {e.key for e in entries}:
            entries.append(one)
    wanted = list(entries)
    if len(entries) > 1 and draw.random() < 0.3:  # some of it is not asked for
        wanted.pop(draw.int(0, len(wanted) - 1))
    if draw.random() < 0.4:
        draw.rng.shuffle(wanted)
    schema = {"type": "object", "properties": {e.key: e.schema for e in wanted}, "required": [e.key for e in wanted]}
    told, asked = facts(draw, entries), request(draw, wanted, schema)
    question = (
        f"{asked}\n{told}" if draw.random() < 0.4 else f"{told}\n{asked}" if draw.random() < 0.6 else f"{told} {asked}"
    )
    return Form(question, schema, {e.key: e.value for e in wanted})


def problem_form(draw: Draw, problem: Problem) -> Form:
    """A word problem whose steps and answer are wanted as JSON."""
    steps, final = problem.answer.split("\n#### ")
    steps_key = draw.accept(lambda: draw.any("steps", "reasoning", "solution", "work"))
    answer_key = draw.accept(lambda: draw.any("answer", "result", "final_answer", "final"))
    asked = draw.any(
        "Answer in JSON with {} and {}.",
        "Give a JSON object with the keys {} and {}.",
        "Reply with JSON. Keys: {}, {}.",
    ).format(steps_key, answer_key)
    schema = {
        "type": "object",
        "properties": {steps_key: {"type": "string"}, answer_key: {"type": "integer"}},
        "required": [steps_key, answer_key],
    }
    return Form(f"{problem.question}\n{asked}", schema, {steps_key: steps.replace("\n", " "), answer_key: int(final)})
