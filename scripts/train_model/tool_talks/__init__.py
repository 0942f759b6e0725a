"""Talks with tools, thoughts and JSON, made from seeded templates.

`talks` yields training talks without end. `test_calls`, `test_loops` and `test_forms` yield test items whose tool
names, parameter names, keys and descriptions training never sees (see `vocabulary.held`).
"""

import json
import random
from collections.abc import Callable, Iterator

from word_problems.core import Problem

from tool_talks.forms import Form, form, problem_form
from tool_talks.jobs import Job, attribute, compute, convert, job, like, look_up
from tool_talks.talk import Step, Talk, Tool, Turn
from tool_talks.vocabulary import ATTRIBUTES, KINDS, UNITS, Draw, listed

SYSTEM_TEXTS = (
    "You are a helpful assistant.", "Use the tools.", "You can call tools.", "You are a helpful assistant with tools.", "Be concise.",
    "Answer with the help of the tools.", "Call a tool when it helps.", "You are terse.", "You are an agent.",
)  # fmt: skip
THOUGHTS = 0.4  # share of talks with thinking on
FEW, MORE = (0, 0, 0, 0, 1, 1, 1, 2, 2, 3), (0, 0, 0, 1, 1, 1, 2, 2, 2, 3)  # tools beside the right ones
DONE, NONE_FITS = "I have what I need.", "No tool fits."
CANNOT = "None of my tools can do that."
Ask = Callable[[bool], tuple[str, str, str]]  # thinking or not -> question, thought, answer of something without tools


def others(draw: Draw, needs: frozenset[str], names: set[str], count: int) -> list[Tool]:
    """Tools that cannot do what `needs` says and are not called `names`; in training most of them nearly can."""
    tools: list[Tool] = []
    wanted = sorted(needs)
    while len(tools) < count:
        near = not draw.test and wanted and draw.chance(0.6)
        other = like(draw, draw.pick(wanted)) if near else job(draw)
        if not other.offers & needs and other.tool.name not in names:
            names.add(other.tool.name)
            tools.append(other.tool)
    return tools


def with_others(draw: Draw, jobs: list[Job], most: int = 4) -> list[Tool]:
    """The jobs' tools among others, in a drawn order."""
    tools = list({j.tool.name: j.tool for j in jobs}.values())
    needs = frozenset().union(*(j.needs for j in jobs))
    room = max(0, most - len(tools))
    tools += others(draw, needs, {t.name for t in tools}, min(room, draw.pick(FEW if draw.test else MORE)))
    draw.rng.shuffle(tools)
    return tools


def step_of(jobs: list[Job], first: bool = True) -> Step:
    goals, names = listed([j.goal for j in jobs]), listed(list(dict.fromkeys(j.tool.name for j in jobs)))
    lead = "I need" if first else "Now I need"
    return Step(
        f"{lead} {goals}, so I call {names}.", [(j.tool.name, j.arguments) for j in jobs], [j.result for j in jobs]
    )


# ---- turns ----


def single(draw: Draw, failures: float = 0.03) -> tuple[Turn, list[Job]]:
    one = job(draw)
    step = step_of([one])
    if draw.random() < failures:
        why = draw.any(
            "not found", "no such entry", "unknown value", "out of range", f"no {draw.made_up()}", "try again later"
        )
        failed = Step(step.thought, step.calls, [draw.any(json.dumps({"error": why}), f"error: {why}")])
        return Turn(one.question, [failed], "The tool failed.", f"The tool failed: {why}."), [one]
    return Turn(one.question, [step], DONE, one.answer), [one]


def parallel(draw: Draw) -> tuple[Turn, list[Job]]:
    """The same look-up for two keys, or two unlike jobs, called at once."""
    first = look_up(draw)
    while len(first.arguments) > 1:
        first = look_up(draw)
    if draw.random() < 0.5:
        (key,) = first.arguments
        value = draw.proper()
        while value == str(first.arguments[key]):
            value = draw.proper()
        attr = first.goal.removeprefix("the ").removesuffix(f" of {first.arguments[key]}")
        if not isinstance(first.arguments[key], str):
            return parallel(draw)
        found = str(draw.number()) if draw.random() < 0.6 else draw.text()
        second = Job(
            first.tool,
            {key: value},
            "",
            f"the {attr} of {value}",
            found,
            f"The {attr} of {value} is {found}.",
            first.offers,
            first.needs,
            (found,),
        )
        both = f"{first.arguments[key]} and {value}"
        question = draw.any(
            f"What is the {attr} of {both}?",
            f"Tell me the {attr} of {both}.",
            f"I need the {attr} of {both}.",
            f"{attr.capitalize()} of {both}?",
            f"Look up the {attr} for {both}.",
        )
    else:
        second = job(draw)
        while second.offers & first.needs or first.offers & second.needs or second.tool.name == first.tool.name:
            second = job(draw)
        question = f"{first.question} {draw.any('', 'Also: ', 'And: ', 'Then: ')}{second.question}"
    jobs = [first, second]
    return Turn(question, [step_of(jobs)], DONE, f"{first.answer} {second.answer}"), jobs


def small(draw: Draw) -> int:
    return draw.int(2, 20)


def look_up_then_compute(draw: Draw) -> tuple[Turn, list[Job]]:
    value = draw.proper() if draw.random() < 0.7 else draw.thing()
    first = look_up(draw, numeric=True, key=value)
    while len(first.arguments) > 1:
        first = look_up(draw, numeric=True, key=value)
    found = json.loads(first.shown[0])
    operation = draw.any("add", "subtract", "multiply", "multiply", "divide")
    number = small(draw)
    second = compute(draw, operation, found, number)
    goal = first.goal
    question = {
        "add": ("What is {} plus {}?", "Add {1} to {0}.", "Look up {} and add {}."),
        "subtract": ("What is {} minus {}?", "Subtract {1} from {0}.", "Look up {} and subtract {}."),
        "multiply": ("What is {} times {}?", "Multiply {} by {}.", "Look up {} and multiply it by {}."),
        "divide": ("What is {} divided by {}?", "Divide {} by {}.", "Look up {} and divide it by {}."),
    }[operation]  # fmt: skip
    return chain(draw.pick(question).format(goal, number), first, second)


def look_up_then_convert(draw: Draw) -> tuple[Turn, list[Job]]:
    value = draw.proper() if draw.random() < 0.7 else draw.thing()
    first = look_up(draw, numeric=True, key=value)
    while len(first.arguments) > 1:
        first = look_up(draw, numeric=True, key=value)
    found, source, target = json.loads(first.shown[0]), draw.word(UNITS), draw.word(UNITS)
    while target == source:
        target = draw.word(UNITS)
    second = convert(draw, found, (source, target))
    result = draw.any(f"{found} {source}", json.dumps({"value": found, "unit": source}))
    first = Job(
        first.tool,
        first.arguments,
        first.question,
        first.goal,
        result,
        first.answer,
        first.offers,
        first.needs,
        first.shown,
    )
    question = draw.any(
        f"What is {first.goal} in {target}?",
        f"Tell me {first.goal} in {target}.",
        f"Look up {first.goal} and convert it to {target}.",
        f"I need {first.goal} in {target}.",
    )
    return chain(question, first, second)


def look_up_chain(draw: Draw) -> tuple[Turn, list[Job]]:
    """`the population of the capital of Oslo`."""
    value, middle, inner = draw.proper(), draw.proper(), draw.word(ATTRIBUTES)
    outer = attribute(draw)
    while outer.split()[-1] == inner or middle == value:
        outer, middle = attribute(draw), draw.proper()
    first, second = look_up(draw, key=value, attr=inner), look_up(draw, key=middle, kind=inner, attr=outer)
    while len(first.arguments) > 1:
        first = look_up(draw, key=value, attr=inner)
    while len(second.arguments) > 1:
        second = look_up(draw, key=middle, kind=inner, attr=outer)
    result = draw.any(middle, json.dumps({inner: middle}, ensure_ascii=False))
    first = Job(first.tool, first.arguments, "", first.goal, result, "", first.offers, first.needs, (middle,))
    question = draw.any(
        f"What is the {outer} of the {inner} of {value}?",
        f"Tell me the {outer} of the {inner} of {value}.",
        f"Find the {inner} of {value}, then its {outer}.",
        f"I need the {outer} of {value}'s {inner}.",
    )
    return chain(question, first, second)


def compute_chain(draw: Draw) -> tuple[Turn, list[Job]]:
    """`23 plus 45, then times 6`; two tools."""
    pair = draw.rng.sample(["add", "subtract", "multiply", "divide"], 2)
    first = compute(draw, pair[0], draw.int(2, 999), draw.int(2, 99))
    left, right = first.arguments.values()
    number = small(draw)
    second = compute(draw, pair[1], json.loads(first.shown[0]), number)
    does = {"add": "add {}", "subtract": "subtract {}", "multiply": "multiply by {}", "divide": "divide by {}"}[
        pair[1]
    ].format(number)
    begins = {
        "add": "Add {} and {}",
        "subtract": "Subtract {1} from {0}",
        "multiply": "Multiply {} by {}",
        "divide": "Divide {} by {}",
    }[pair[0]].format(left, right)
    signs = {"add": "plus", "subtract": "minus", "multiply": "times", "divide": "divided by"}
    question = draw.any(f"{begins}, then {does}.", f"{begins} and {does.replace('by', 'the result by') if 'by' in does else does}.", f"{begins}. Then {does}.",
                        f"What is {left} {signs[pair[0]]} {right}, {signs[pair[1]]} {number}?", f"First {begins.lower()}, then {does}.")  # fmt: skip
    return chain(question, first, second)


def chain(question: str, first: Job, second: Job) -> tuple[Turn, list[Job]]:
    answer = second.answer
    return Turn(question, [step_of([first]), step_of([second], first=False)], DONE, answer), [first, second]


LOOPS: tuple[Callable, ...] = (look_up_then_compute, look_up_then_convert, look_up_chain, compute_chain)
HARDER = (look_up_then_convert, look_up_chain)  # to learn
TRAINING_LOOPS = (*LOOPS, *HARDER, *HARDER)


def loop(draw: Draw) -> tuple[Turn, list[Job]]:
    while True:
        turn, jobs = draw.pick(LOOPS if draw.test else TRAINING_LOOPS)(draw)
        first, second = jobs
        if first.tool.name != second.tool.name and not first.offers & second.needs and not second.offers & first.needs:
            return turn, jobs


def no_call(draw: Draw, ask: Ask, thinking: bool) -> tuple[Turn, frozenset[str]]:
    """Something no tool is needed for, or none can do; what the tools must not offer."""
    if draw.random() < 0.75:
        one = job(draw)
        return Turn(one.question, [], NONE_FITS, CANNOT), one.needs
    question, thought, answer = ask(thinking)
    return Turn(question, [], thought, answer), frozenset()


def table(draw: Draw) -> Turn:
    """A table in the question, and one of its entries asked for."""
    attr, rows = draw.word(ATTRIBUTES), {}
    for _ in range(draw.int(2, 7)):
        rows[draw.text()] = draw.number() if draw.random() < 0.7 else draw.text()
    key = draw.pick(list(rows))
    style = draw.any("{}: {}", "{} = {}", "{} | {}", "{}, {}", "| {} | {} |")
    lines = draw.any("\n", "\n", "; ").join(style.format(k, v) for k, v in rows.items())
    ask = draw.any(
        f"What is the {attr} of {key}?",
        f"Which {attr} has {key}?",
        f"Tell me the {attr} of {key}.",
        f"Look up the {attr} of {key}.",
    )
    head = draw.any(f"{draw.word(KINDS).capitalize()} and {attr}:\n", f"Table of the {attr}:\n", "")
    question = f"{head}{lines}\n{ask}" if draw.random() < 0.6 else f"{ask}\n{head}{lines}"
    return Turn(question, [], "The table has it.", f"The {attr} of {key} is {rows[key]}.")


# ---- talks ----


def talk(draw: Draw, ask: Ask, problems: Iterator[Problem]) -> Talk:
    thinking = draw.chance(THOUGHTS)
    system = draw.pick(SYSTEM_TEXTS) if draw.random() < 0.2 else ""
    dice = draw.random()
    if dice < 0.18:
        one = problem_form(draw, next(problems)) if draw.random() < 0.06 else form(draw)
        return Talk(
            [Turn(one.question, [], "The object needs " + listed(list(one.value)) + ".", one.answer)],
            [],
            thinking,
            system,
        )
    if dice < 0.20:
        return Talk([table(draw)], [], thinking, system)
    if dice < 0.33:
        turn, needs = no_call(draw, ask, thinking)
        return Talk([turn], others(draw, needs, set(), draw.any(1, 1, 1, 2, 2, 3)), thinking, system)
    if dice < 0.40:
        turn, jobs = parallel(draw)
    elif dice < 0.70:
        turn, jobs = loop(draw)
    else:
        turn, jobs = single(draw)
    tools = with_others(draw, jobs)
    turns = [turn]
    if draw.random() < 0.1:  # a second question to the same tool, or small talk
        question, thought, answer = ask(thinking)
        other = Turn(question, [], thought, answer)
        turns = [other, turn] if draw.random() < 0.7 else [turn, other]
    return Talk(turns, tools, thinking, system)


def talks(seed: int, ask: Ask, problems: Iterator[Problem]) -> Iterator[Talk]:
    """Training talks. `ask` gives something to say without tools; `problems` are training's word problems."""
    draw = Draw(random.Random(f"talks-{seed}"))
    while True:
        yield talk(draw, ask, problems)


def test_calls(seed: int) -> Iterator[tuple[Talk, list[Job]]]:
    """One turn with one call, at times two at once or none that fits; tools never seen."""
    draw = Draw(random.Random(f"calls-{seed}"), test=True)
    while True:
        dice = draw.random()
        if dice < 0.08:
            one = job(draw)
            tools = others(draw, one.needs, set(), draw.int(1, 3))
            yield Talk([Turn(one.question, [], NONE_FITS, CANNOT)], tools, draw.chance(THOUGHTS)), []
            continue
        turn, jobs = parallel(draw) if dice < 0.16 else single(draw, failures=0.0)
        yield Talk([turn], with_others(draw, jobs), draw.chance(THOUGHTS)), jobs


def test_loops(seed: int) -> Iterator[tuple[Talk, list[Job]]]:
    """Two calls in sequence, tools never seen."""
    draw = Draw(random.Random(f"loops-{seed}"), test=True)
    while True:
        turn, jobs = loop(draw)
        yield Talk([turn], with_others(draw, jobs), draw.chance(THOUGHTS)), jobs


def test_forms(seed: int) -> Iterator[tuple[Talk, Form]]:
    draw = Draw(random.Random(f"forms-{seed}"), test=True)
    while True:
        one = form(draw)
        yield Talk([Turn(one.question, [], "", one.answer)], [], draw.chance(THOUGHTS)), one


test_calls.__test__ = test_loops.__test__ = test_forms.__test__ = False  # they are no pytest functions
