"""Single jobs a tool can do: the tool with a name of its own, the question, the call, what it returns and the answer.

Every kind is a function of a `Draw`. Names, parameters and descriptions are new each time; what ties a question to a
tool is what its description, its name and its parameters say.
"""

import json
from dataclasses import dataclass
from typing import Any

from tool_talks.talk import Tool
from tool_talks.vocabulary import (
    ACTS,
    ADJECTIVES,
    ANY_WORD,
    ATTRIBUTES,
    FIELDS,
    GENERIC_PARAMETERS,
    KINDS,
    NUMBER_PAIRS,
    OBJECTS,
    OPTIONS,
    SWITCHES,
    UNITS,
    VERBS,
    Draw,
    Number,
    a,
    held,
    listed,
)


@dataclass(frozen=True)
class Job:
    tool: Tool
    arguments: dict[str, Any]
    question: str
    goal: str  # a noun phrase, or "to ...": what the call is for
    result: str
    answer: str
    offers: frozenset[str]  # what its tool can do
    needs: frozenset[str]  # what no other declared tool may offer
    shown: tuple[str, ...] = ()  # what of the result an answer must name


# ---- names and schemas ----


def tool_name(draw: Draw, *phrases: list[str], invented: float = 0.25) -> str:
    """A name of one of the word lists, or one that says nothing."""

    def make() -> str:
        if draw.random() < invented + (0 if draw.test else 0.3):
            return draw.joined([draw.made_up() for _ in range(draw.any(1, 1, 2))])
        words = draw.pick(phrases)
        if draw.random() < 0.08:
            words = [
                *words,
                draw.any("tool", "api", "v2", "now", "by_name", "service", "data", "info", str(draw.int(1, 9))),
            ]
        return draw.joined(words)

    return draw.accept(make)


def description(draw: Draw, *phrasings: str, empty: float = 0.0) -> str:
    if draw.random() < empty:
        return ""
    return draw.accept(
        lambda: (
            led(draw, draw.pick(phrasings)) + draw.any(".", ".", "", f" ({draw.made_up()}).", f" for {draw.made_up()}.")
        )
    )


def led(draw: Draw, text: str) -> str:
    """In training at times behind a word: else a text that is kept for the test sets would never end a description."""
    return f"{draw.made_up().capitalize()}: {text}" if not draw.test and draw.chance(0.12) else text


def parameter(draw: Draw, *words: str, invented: float = 0.25) -> str:
    """A parameter's name: one of `words` on this side, or a made-up one."""
    sides = [w for w in words if held(w) == draw.test]
    if not draw.test:
        if draw.chance(0.15):
            return draw.accept(lambda: draw.joined([draw.pick(ANY_WORD), draw.made_up()]))
        invented *= 2
    return draw.pick(sides) if sides and draw.random() >= invented else draw.made_up()


def schema(draw: Draw, kind: str, *phrasings: str, described: float = 0.5, **more) -> dict:
    out = {"type": kind, **more}
    if phrasings and draw.random() < described:
        out["description"] = draw.accept(
            lambda: (
                led(draw, draw.pick(phrasings))
                + draw.any("", "", "", ".", f" ({draw.made_up()})", f", e.g. {draw.text()}")
            )
        )
    return out


def third(verb: str) -> str:
    """`get` -> `Gets`."""
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1].capitalize() + "ies"
    return verb.capitalize() + ("es" if verb.endswith(("ch", "sh", "x", "s", "o", "z")) else "s")


# ---- look-ups by a key ----


def attribute(draw: Draw) -> str:
    noun = draw.word(ATTRIBUTES)
    return f"{draw.word(ADJECTIVES, 0.1)} {noun}" if draw.random() < 0.2 else noun


def key_value(draw: Draw) -> tuple[Any, str]:
    """A key to look up, and its JSON type."""
    dice = draw.random()
    if dice < 0.12:
        number = draw.int(1, 99999)
        return (number, "integer") if dice < 0.08 else (str(number), "string")
    if dice < 0.24:
        return draw.code(), "string"
    if dice < 0.4:
        return draw.thing(), "string"
    return (draw.proper() if dice < 0.85 else draw.text()), "string"


def result_value(draw: Draw, numeric: bool) -> str:
    if numeric or draw.random() < 0.5:
        return str(draw.number())
    return draw.text() if draw.random() < 0.7 else f"{draw.number()} {draw.word(UNITS)}"


def wrapped(draw: Draw, name: str, value: str, key: Any) -> str:
    """A result as tools return it: the value alone, or JSON with the value under its name."""
    if draw.random() < 0.5:
        return value
    try:
        typed = json.loads(value)
    except ValueError:
        typed = value
    fields = [(name.replace(" ", "_"), typed)]
    if draw.random() < 0.3:
        fields.append((draw.word(FIELDS), draw.any(draw.text(), draw.number())))
    if draw.random() < 0.2:
        fields.append((draw.any("name", "key", "id", "query", "input"), key))
    if draw.random() < 0.3:
        draw.rng.shuffle(fields)
    return json.dumps(dict(fields), ensure_ascii=False)


def look_up(draw: Draw, numeric: bool = False, key: Any = None, kind: str = "", attr: str = "") -> Job:
    attr, kind = attr or attribute(draw), kind or draw.word(KINDS, 0.2)
    value, value_type = (key, "string") if key is not None else key_value(draw)
    verb, words = draw.word(VERBS, 0.05), attr.split()
    name = tool_name(draw, [verb, *words], [verb, kind, *words], [*words, "of", kind], [kind, *words], words, [*words, "lookup"],
                     [verb, *words, "for", kind], [verb, *words, "by", kind])  # fmt: skip
    of = draw.any("of", "of", "of", "for", "in")
    which = draw.any(a(kind), a(kind), f"the {kind}", f"the given {kind}", f"one {kind}")
    what = description(
        draw, f"{third(verb)} the {attr} {of} {which}", f"{verb.capitalize()} the {attr} {of} {which}", f"Returns the {attr} {of} {which}",
        f"The {attr} {of} {which}", f"Get the {attr} {of} {which}", f"{attr.capitalize()} {of} {which}", f"Gives the {attr} {of} {which}",
        f"Looks up the {attr} {of} {which}", f"Use this to find the {attr} {of} {which}",
    )  # fmt: skip
    key_name = parameter(draw, kind, kind, f"{kind}_name", f"{kind}_id", *GENERIC_PARAMETERS)
    properties = {
        key_name: schema(draw, value_type, f"The {kind}", f"Name of the {kind}", f"{kind} to look up", f"Which {kind}", f"The {kind}'s name",
                         f"{a(kind).capitalize()}", f"Name or id of {a(kind)}", f"The {kind} to {verb}")
    }  # fmt: skip
    arguments, required, extra = {key_name: value}, [key_name], ""
    dice = draw.random()
    if dice < 0.22:  # a unit or another choice
        options = list(dict.fromkeys(draw.word(draw.any(UNITS, OPTIONS)) for _ in range(draw.int(2, 4))))
        label = parameter(draw, "unit", "units", "format", "mode", "style", "scale", "system", "type", "form", "output")
        properties[label] = schema(
            draw, "string", f"The {label}", f"{label} to use", f"{label} of the {attr}", enum=options, described=0.3
        )
        if draw.random() < 0.8:
            arguments[label] = draw.pick(options)
            extra = draw.any(
                f" in {arguments[label]}",
                f" in {arguments[label]}",
                f" with {label} {arguments[label]}",
                f" ({arguments[label]})",
            )
            if draw.random() < 0.6:
                required.append(label)
    elif dice < 0.34:  # a day or a year
        label = parameter(draw, "year", "day", "date", "month", "when", "time", "season", "period")
        when = (
            draw.int(1900, 2050)
            if draw.random() < 0.5
            else draw.any("Monday", "Tuesday", "Friday", "Sunday", "today", "tomorrow")
        )
        properties[label] = schema(
            draw, "integer" if isinstance(when, int) else "string", f"The {label}", f"{label} asked for"
        )
        if draw.random() < 0.75:
            arguments[label] = when
            extra = f" in {when}" if isinstance(when, int) else f" {when}" if when[0] == "t" else f" on {when}"
            if draw.random() < 0.6:
                required.append(label)
    draw.rng.shuffle(required)
    shown_key = f"{kind} {value}" if draw.random() < 0.3 or str(value).isdigit() else str(value)
    asks = draw.any("of", "of", "of", "for", "for", "in", "at")
    question = draw.any(
        f"What is the {attr} {asks} {shown_key}{extra}?", f"What is the {attr} {asks} {shown_key}{extra}?", f"Tell me the {attr} {asks} {shown_key}{extra}.",
        f"I need the {attr} {asks} {shown_key}{extra}.", f"{attr.capitalize()} {asks} {shown_key}{extra}?", f"Look up the {attr} {asks} {shown_key}{extra}.",
        f"Give me the {attr} {asks} {shown_key}{extra}, please.", f"Can you find the {attr} {asks} {shown_key}{extra}?", f"what's the {attr} {asks} {shown_key}{extra}",
        f"Please {verb} the {attr} {asks} {shown_key}{extra}.", f"Use {name} for {shown_key}{extra}.", f"I want to know the {attr} {asks} {shown_key}{extra}.",
        f"How is the {attr} in {shown_key}{extra}?", f"What is the {attr} like in {shown_key}{extra}?", f"What {attr} does {shown_key} have{extra}?", f"Which {attr} does {shown_key} have{extra}?", f"What is {shown_key}'s {attr}{extra}?",
    )  # fmt: skip
    found = result_value(draw, numeric)
    return Job(
        Tool(name, what, properties, tuple(required)), arguments, question, f"the {attr} of {value}",
        wrapped(draw, attr, found, value), f"The {attr} of {value} is {found}.",
        frozenset({f"look:{words[-1]}"}), frozenset({f"look:{words[-1]}", "table"}), (found,),
    )  # fmt: skip


def table_look_up(draw: Draw) -> Job:
    """A tool for any table: which table, which row."""
    attr, value = draw.word(ATTRIBUTES), key_value(draw)[0]
    name = tool_name(
        draw,
        [draw.word(VERBS, 0.05), draw.any("row", "entry", "value", "table", "record")],
        ["table", "lookup"],
        ["lookup"],
    )
    what = description(draw, "Looks up a row in a table", "Look up one entry of a table", "Get a value from a table", "Reads the value of a key in a table",
                       "Finds a key in a table", "Returns a table's entry for a key", "Table look-up")  # fmt: skip
    table = parameter(
        draw, "table", "sheet", "source", "list", "db", "dataset", "index", "table_name", "from_table", "catalog"
    )
    key = parameter(draw, *GENERIC_PARAMETERS, "row", "row_key", "row_name")
    if key == table:
        key += "_key"
    told = 0.7 if draw.test else 0.9
    properties = {
        table: schema(draw, "string", "The table", "Name of the table", "Table to read", "Which table", described=told),
        key: schema(draw, "string", "The key", "Key of the row", "The row to find", "What to look up", described=told),
    }
    value = str(value)
    question = draw.any(
        f"Look up {value} in the table {attr}.", f"What does the table {attr} say about {value}?", f"Find {value} in the {attr} table.",
        f"In table {attr}, what is the entry of {value}?", f"Read {value} from the {attr} table.", f"What is {value} in the {attr} table?",
    )  # fmt: skip
    found = result_value(draw, False)
    return Job(
        Tool(name, what, properties, (table, key)), {table: attr, key: value}, question, f"{value} in the table {attr}",
        wrapped(draw, "value", found, value), f"The {attr} of {value} is {found}.",
        frozenset({"table"}), frozenset({"table", f"look:{attr}"}), (found,),
    )  # fmt: skip


# ---- sums ----


def tidy(x: Number) -> Number:
    """At most four decimals, and no `.0`."""
    x = round(x, 4)
    return int(x) if x == int(x) else x


# operation: sign, words for names, what it makes of two numbers (a description), questions
OPERATIONS = {
    "add": ("+", "add sum plus addition total combine add_up addition_tool sum_up".split(),
            ["Adds {}", "Add {}", "Sum of {}", "Returns the sum of {}", "Calculates the sum of {}", "Adds up {}", "Computes the total of {}", "Addition of {}", "Plus"],
            ["What is {a} plus {b}?", "Add {a} and {b}.", "What is {a} + {b}?", "What is the sum of {a} and {b}?", "How much is {a} plus {b}?", "Sum {a} and {b}.", "{a} + {b}", "What do you get when you add {a} and {b}?"],
            "{a} plus {b}"),
    "subtract": ("-", "subtract minus difference subtraction sub take_away deduct".split(),
            ["Subtracts {}", "Subtract {}", "Difference of {}", "Returns the difference of {}", "Calculates the difference between {}", "Subtraction of {}", "Takes the second from the first of {}", "Minus"],
            ["What is {a} minus {b}?", "Subtract {b} from {a}.", "What is {a} - {b}?", "What is the difference of {a} and {b}?", "How much is {a} minus {b}?", "Take {b} away from {a}.", "{a} - {b}"],
            "{a} minus {b}"),
    "multiply": ("*", "multiply product times multiplication mul multiply_by".split(),
            ["Multiplies {}", "Multiply {}", "Product of {}", "Returns the product of {}", "Calculates the product of {}", "Multiplication of {}", "Times"],
            ["What is {a} times {b}?", "Multiply {a} by {b}.", "What is {a} * {b}?", "What is the product of {a} and {b}?", "How much is {a} times {b}?", "{a} * {b}", "{a} x {b} = ?"],
            "{a} times {b}"),
    "divide": ("/", "divide quotient division div ratio divide_by split".split(),
            ["Divides {}", "Divide {}", "Quotient of {}", "Returns the quotient of {}", "Calculates the ratio of {}", "Division of {}", "Divides the first by the second of {}"],
            ["What is {a} divided by {b}?", "Divide {a} by {b}.", "What is {a} / {b}?", "What is the quotient of {a} and {b}?", "How much is {a} divided by {b}?", "{a} / {b}"],
            "{a} divided by {b}"),
    "power": ("^", "power pow exponent raise exponentiate to_the_power".split(),
            ["Raises a number to a power", "Power of {}", "Returns the first to the power of the second of {}", "Exponent of {}", "Calculates a power"],
            ["What is {a} to the power of {b}?", "Raise {a} to the power of {b}.", "What is {a} ^ {b}?", "{a} to the power {b}"],
            "{a} to the power of {b}"),
    "remainder": ("%", "remainder mod modulo rest modulus".split(),
            ["Remainder of {}", "Returns the remainder of {}", "Calculates the remainder of a division", "The rest of a division of {}", "Modulo of {}"],
            ["What is the remainder of {a} divided by {b}?", "What remains when {a} is divided by {b}?", "What is {a} mod {b}?", "What is {a} % {b}?"],
            "the remainder of {a} and {b}"),
    "percent": ("%of", "percent percentage percent_of share portion".split(),
            ["Percentage of a number", "Returns a percentage of a number", "Calculates percent of a value", "Takes a percentage of an amount"],
            ["What is {a} percent of {b}?", "What is {a}% of {b}?", "Calculate {a} percent of {b}.", "How much is {a}% of {b}?"],
            "{a} percent of {b}"),
}  # fmt: skip
TWO = ["two numbers", "a and b", "two values", "both numbers", "the numbers", "the two numbers", "two given numbers", "the arguments", "its arguments"]  # fmt: skip
ROLES = {
    "subtract": (["number to subtract from", "the larger number", "start value"], ["number to subtract", "the number taken away", "what is subtracted"]),
    "divide": (["number to divide", "the dividend", "dividend"], ["number to divide by", "the divisor", "divisor"]),
    "power": (["the base", "base number", "number to raise"], ["the exponent", "power", "the power"]),
    "remainder": (["number to divide", "the dividend", "dividend"], ["number to divide by", "the divisor", "divisor"]),
    "percent": (["the percentage", "percent", "how many percent"], ["the whole", "the number", "amount"]),
}  # fmt: skip
ORDER = (
    ["first number", "the first number", "first value", "first operand"],
    ["second number", "the second number", "second value", "second operand"],
)
SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}


def operands(draw: Draw, operation: str) -> tuple[Number, Number]:
    if operation == "power":
        return draw.int(2, 20), draw.int(2, 5)
    if operation == "remainder":
        return draw.int(10, 999), draw.int(2, 30)
    if operation == "percent":
        return draw.int(1, 99), draw.number()
    left, right = draw.number(), draw.number()
    return left, right if operation != "divide" or right else 7


def outcome(operation: str, left: Number, right: Number) -> Number:
    if operation == "add":
        return tidy(left + right)
    if operation == "subtract":
        return tidy(left - right)
    if operation == "multiply":
        return tidy(left * right)
    if operation == "divide":
        return tidy(left / right)
    if operation == "power":
        return left**right
    return left % right if operation == "remainder" else tidy(left * right / 100)


def number_pair(draw: Draw) -> tuple[str, str]:
    """Two parameter names whose order in the alphabet is the order of the numbers, so that it can be told."""
    while True:
        if draw.random() < (0.6 if draw.test else 0.35):
            left, right = draw.pick(NUMBER_PAIRS).split()
        else:
            left, right = draw.made_up(), draw.made_up()
        if left.lower() < right.lower() and (
            held(left) and held(right) if draw.test else not (held(left) or held(right))
        ):
            return left, right
        if (
            draw.test and left.lower() < right.lower() and draw.random() < 0.1
        ):  # few pairs of common names are held out whole
            prefix = draw.made_up()
            left, right = f"{prefix}_1", f"{prefix}_2"
            if held(left) and held(right):
                return left, right


def compute(draw: Draw, operation: str = "", left: Number | None = None, right: Number | None = None) -> Job:
    operation = operation or draw.pick(
        ("add", "subtract", "multiply", "divide") * 3 + ("power", "remainder", "percent")
    )
    _, words, says, asks, goal = OPERATIONS[operation]
    numbers = operands(draw, operation)
    left, right = numbers[0] if left is None else left, numbers[1] if right is None else right
    word = draw.pick(words)
    name = tool_name(
        draw,
        [word],
        [word],
        [word, draw.any("numbers", "two", "values", "calc", "ab")],
        [draw.any("calc", "do", "math", "compute"), word],
        invented=0.3,
    )
    what = description(draw, *(s.format(draw.pick(TWO)) for s in says))
    names = list(number_pair(draw))
    roles = ROLES.get(operation, ORDER) if draw.random() < 0.6 else ORDER
    described = draw.any(0.0, 0.0, 1.0)
    if operation in ROLES and draw.random() < 0.3:  # names out of order, told by their descriptions
        names.reverse()
        described, roles = 1.0, ROLES[operation]
    kind = draw.any("number", "number", "integer") if isinstance(left, int) and isinstance(right, int) else "number"
    properties = {n: schema(draw, kind, *r, described=described) for n, r in zip(names, roles, strict=True)}
    order = list(names)
    draw.rng.shuffle(order)
    result = str(outcome(operation, left, right))
    question = draw.pick(asks).format(a=left, b=right)
    if draw.random() < 0.1:
        question = draw.any("Please help: ", "Question: ", "Can you tell me: ", f"Use {name}: ") + question
    return Job(
        Tool(name, what, properties, tuple(order) if draw.random() < 0.5 else tuple(names)), dict(zip(names, (left, right), strict=True)),
        question, goal.format(a=left, b=right), result_of(draw, result), f"The result is {result}.",
        frozenset({f"op:{operation}"}), frozenset({f"op:{operation}", "calc"}), (result,),
    )  # fmt: skip


def result_of(draw: Draw, result: str) -> str:
    if draw.random() < 0.6:
        return result
    return json.dumps({draw.any("result", "value", "answer", "output", "res"): json.loads(result)})


GROUPS = {
    "sum": ("sum total sum_all add_all".split(), ["the sum", "the total"], sum),
    "mean": ("average mean avg".split(), ["the average", "the mean"], lambda n: sum(n) / len(n)),
    "max": ("max maximum largest biggest highest".split(), ["the maximum", "the largest number", "the biggest number"], max),
    "min": ("min minimum smallest lowest least".split(), ["the minimum", "the smallest number", "the lowest number"], min),
    "count": ("count size how_many".split(), ["the count", "the number of values"], len),
}  # fmt: skip


def of_many(draw: Draw) -> Job:
    """One parameter that takes a list of numbers."""
    group = draw.pick(list(GROUPS))
    words, nouns, function = GROUPS[group]
    numbers = [draw.number() for _ in range(draw.int(3, 5))]
    word, noun = draw.pick(words), draw.pick(nouns)
    name = tool_name(draw, [word], [word, draw.any("of", "numbers", "list", "values")], ["list", word])
    many = draw.any("a list of numbers", "the numbers", "many numbers", "a list", "several numbers", "all values")
    told = draw.pick(nouns)
    what = description(
        draw,
        f"Returns {told} of {many}",
        f"Calculates {told} of {many}",
        f"{told.capitalize()} of {many}",
        f"Gives {told} of {many}",
        f"Finds {told} of {many}",
    )
    key = parameter(
        draw, "numbers", "values", "items", "list", "data", "xs", "nums", "input", "array", "series", "points"
    )
    properties = {
        key: schema(
            draw,
            "array",
            "The numbers",
            "List of numbers",
            "The values",
            "Numbers to use",
            items={"type": "number"},
            described=0.4,
        )
    }
    question = draw.any(
        "What is {} of {}?", "Calculate {} of {}.", "Find {} of {}.", "I need {} of {}.", "Give me {} of {}."
    ).format(noun, listed([str(n) for n in numbers]))
    result = str(tidy(function(numbers)))
    return Job(
        Tool(name, what, properties, (key,)), {key: numbers}, question, f"{noun} of the numbers", result_of(draw, result),
        f"The result is {result}.", frozenset({f"many:{group}"}), frozenset({f"many:{group}", "calc"}), (result,),
    )  # fmt: skip


def calculator(draw: Draw) -> Job:
    """One tool for every sum: the expression as a string, or two numbers and the operation's name or sign."""
    operations = frozenset(f"op:{o}" for o in OPERATIONS) | {"calc"}
    word = draw.any("calculator", "calculate", "calc", "compute", "evaluate", "eval", "math", "arithmetic", "solve")
    name = tool_name(
        draw,
        [word],
        [word],
        [word, draw.any("expression", "math", "sum", "numbers", "it")],
        ["do", word],
        ["simple", word],
    )
    if draw.random() < 0.5:
        count = draw.any(2, 2, 3)
        terms, signs = [draw.int(2, 999) for _ in range(count)], [draw.any("+", "-", "*") for _ in range(count - 1)]
        texts = [str(t) for t in terms]
        text = texts[0] + "".join(f" {s} {t}" for s, t in zip(signs, texts[1:], strict=True))
        if count == 3 and draw.random() < 0.4:
            text = f"({texts[0]} {signs[0]} {texts[1]}) {signs[1]} {texts[2]}"
        what = description(draw, "Evaluates an expression", "Calculates an arithmetic expression", "Evaluate a math expression", "Computes the value of an expression",
                           "A calculator", "Solves an expression", "Does arithmetic")  # fmt: skip
        key = parameter(
            draw,
            "expression",
            "expr",
            "input",
            "formula",
            "query",
            "text",
            "term",
            "math",
            "calculation",
            "equation",
            "sum",
        )
        properties = {
            key: schema(draw, "string", "The expression", "Expression to evaluate", "What to calculate", "The formula")
        }
        question = draw.any(
            f"What is {text}?",
            f"Calculate {text}.",
            f"{text}",
            f"{text} = ?",
            f"How much is {text}?",
            f"Compute {text}",
            f"Please evaluate {text}.",
        )
        return Job(
            Tool(name, what, properties, (key,)), {key: text}, question, text, result_of(draw, result := str(tidy(eval(text)))),
            f"The result is {result}.", frozenset({"calc"}), operations, (result,),
        )  # fmt: skip
    operation = draw.pick(list(SIGNS))
    left, right = operands(draw, operation)
    options = list(SIGNS.values()) if draw.random() < 0.3 else list(SIGNS)
    if draw.random() < 0.5:
        draw.rng.shuffle(options)
    names = number_pair(draw)
    key = parameter(draw, "operation", "op", "operator", "action", "method", "kind", "type", "mode", "function", "sign")
    what = description(
        draw,
        "Calculates with two numbers",
        "Adds, subtracts, multiplies or divides",
        "A simple calculator",
        "Does a sum with two numbers",
        "Basic arithmetic",
        "Calculator for two numbers",
    )
    properties = {n: schema(draw, "number", *r, described=0.3) for n, r in zip(names, ORDER, strict=True)}
    properties[key] = schema(
        draw, "string", "The operation", "What to do", "Which operation", enum=options, described=0.3
    )
    chosen = SIGNS[operation] if SIGNS[operation] in options else operation
    required = [*names, key]
    draw.rng.shuffle(required)
    _, _, _, asks, goal = OPERATIONS[operation]
    result = str(outcome(operation, left, right))
    return Job(
        Tool(name, what, properties, tuple(required)), {names[0]: left, names[1]: right, key: chosen},
        draw.pick(asks).format(a=left, b=right), goal.format(a=left, b=right), result_of(draw, result),
        f"The result is {result}.", frozenset({"calc"}), operations, (result,),
    )  # fmt: skip


# ---- units ----

FROM_UNIT = ("Unit of the value", "Unit to convert from", "The unit it is in", "From this unit")
TO_UNIT = ("Unit to convert to", "The unit wanted", "Into this unit", "To this unit")
# Training's alone. The short ones come first: what a parameter named at random is for is then learned from one word.
MORE_FROM_UNIT = (
    "From",
    "Source",
    "Old",
    "From",
    "Source unit",
    "From unit",
    "Unit it has now",
    "Convert from this unit",
)
MORE_TO_UNIT = ("To", "Target", "New", "Into", "Target unit", "To unit", "Unit it gets", "Convert to this unit")


def convert(draw: Draw, amount: Number | None = None, units: tuple[str, str] | None = None) -> Job:
    source, target = units or (draw.word(UNITS), draw.word(UNITS))
    while target == source:
        target = draw.word(UNITS)
    amount = amount if amount is not None else draw.number()
    result = str(tidy(amount * draw.int(2, 400) / draw.any(1, 3, 10, 100)))
    own = draw.random() < (0.4 if draw.test else 0.15)  # a tool for this pair of units alone
    if own:
        name = tool_name(
            draw,
            [source, "to", target],
            ["convert", source, "to", target],
            [source, "in", target],
            [source, "into", target],
            [target, "from", source],
            invented=0.3,
        )
        what = description(draw, f"Converts {source} to {target}", f"Convert {source} to {target}", f"Turns {source} into {target}", f"{source.capitalize()} to {target}",
                           f"Gives {source} in {target}", f"From {source} to {target}")  # fmt: skip
        key = parameter(
            draw, source, "value", "amount", "x", "quantity", "number", "n", "input", "val", "count", "measure"
        )
        properties = {
            key: schema(
                draw,
                "number",
                f"The {source}",
                f"Number of {source}",
                f"{source} to convert",
                "The value",
                "Amount to convert",
            )
        }
        required, arguments = (key,), {key: amount}
    else:
        name = tool_name(
            draw,
            ["convert"],
            ["convert", draw.any("units", "unit", "value", "measure", "amount")],
            ["unit", "converter"],
            ["conversion"],
            ["change", "units"],
            ["to", "unit"],
        )
        what = description(draw, "Converts between units", "Convert a value from one unit to another", "Unit conversion", "Changes the unit of a value", "Converts an amount to another unit",
                           "Turns a value into another unit", "Converts units")  # fmt: skip
        pair = draw.any(
            "from_unit to_unit",
            "source target",
            "from to",
            "unit_from unit_to",
            "source_unit target_unit",
            "old new",
            "src dst",
            "in_unit out_unit",
            "unit1 unit2",
            "start end",
        ).split()
        described = 0.3
        if any(held(p) != draw.test for p in pair) or (not draw.test and draw.chance(0.65)):
            pair, described = [draw.made_up(), draw.made_up()], 1.0
            if pair[0] == pair[1]:
                pair = [draw.made_up() + "_from", draw.made_up() + "_to"]
        value = parameter(draw, "value", "amount", "x", "quantity", "number", "n", "input", "val", "count", "magnitude")
        if value in pair:
            value = draw.made_up() + "_value"
        properties = {
            value: schema(draw, "number", "The value", "Value to convert", "The amount", "Number to convert"),
            pair[0]: schema(draw, "string", *FROM_UNIT, *(() if draw.test else MORE_FROM_UNIT), described=described),
            pair[1]: schema(draw, "string", *TO_UNIT, *(() if draw.test else MORE_TO_UNIT), described=described),
        }
        required = [value, *pair]
        draw.rng.shuffle(required)
        arguments = {value: amount, pair[0]: source, pair[1]: target}
    question = draw.any(
        f"Convert {amount} {source} to {target}.", f"How many {target} are {amount} {source}?", f"What is {amount} {source} in {target}?", f"{amount} {source} in {target}?",
        f"Turn {amount} {source} into {target}.", f"How much is {amount} {source} in {target}?", f"Change {amount} {source} to {target}.", f"I have {amount} {source}. How many {target} is that?",
        f"{amount} {source} to {target}", f"Please convert {amount} {source} into {target}.",
    )  # fmt: skip
    pair_of = f"pair:{source}:{target}"
    return Job(
        Tool(name, what, properties, tuple(required)), arguments, question, f"{amount} {source} in {target}",
        result_of(draw, result), f"{amount} {source} are {result} {target}.",
        frozenset({pair_of if own else "convert"}), frozenset({pair_of, "convert"}), (result,),
    )  # fmt: skip


# ---- doing something with details ----


def detail(draw: Draw, taken: set[str]) -> tuple[str, str, dict, Any, str]:
    """A parameter's name, how people call it, its schema, a value and how people say the value."""
    dice = draw.random()
    words = [draw.word(SWITCHES if dice < 0.12 else FIELDS)]
    while words[0] in taken:
        words = [draw.word(FIELDS)]
    taken.add(words[0])
    if draw.random() < 0.15:
        words.append(draw.any("name", "id", "value", "type", "code", "number"))
    name = said = words[0]
    if len(words) > 1:
        said = " ".join(words)
        name = draw.joined(words)
        if held(name) != draw.test:
            name = said = words[0]
    while not draw.test and held(name):
        words = [words[0], draw.made_up()]
        name, said = draw.joined(words), " ".join(words)
    phrasings = [f"The {said}", f"{said} to use", f"{said} of it", f"Which {said}"]
    described = 0.35
    if draw.random() < (0.15 if draw.test else 0.35):  # a name that says nothing
        name, described, phrasings = draw.made_up(), 1.0, [f"The {said}", f"{said} to use", said, f"{said} of it"]
    if dice < 0.12:
        on = draw.chance(0.5)
        return (
            name,
            said,
            schema(draw, "boolean", *phrasings, described=described),
            on,
            draw.any(("yes", "no"), ("on", "off"), ("true", "false"))[not on],
        )
    if dice < 0.28:
        options = list(dict.fromkeys(draw.word(OPTIONS) for _ in range(draw.int(2, 4))))
        value = draw.pick(options)
        return name, said, schema(draw, "string", *phrasings, described=described, enum=options), value, value
    if dice < 0.6:
        number = draw.number()
        kind = "number" if isinstance(number, float) else draw.any("number", "integer")
        return name, said, schema(draw, kind, *phrasings, described=described), number, str(number)
    if dice < 0.66:
        items = [draw.text() for _ in range(draw.int(2, 3))]
        return (
            name,
            said,
            schema(draw, "array", *phrasings, described=described, items={"type": "string"}),
            items,
            listed(items),
        )
    text = draw.text()
    return name, said, schema(draw, "string", *phrasings, described=described), text, text


def act(draw: Draw) -> Job:
    verb, thing = draw.word(ACTS, 0.1), draw.word(OBJECTS, 0.2)
    taken: set[str] = {thing}
    details, used = [], set()
    for _ in range(draw.any(1, 2, 2, 3, 3)):
        one = detail(draw, taken)
        if one[0] not in used:
            used.add(one[0])
            details.append(one)
    name = tool_name(draw, [verb, thing], [verb, thing], [thing, verb], [verb, "a", thing], [verb, "new", thing])
    what = description(draw, f"{third(verb)} {a(thing)}", f"{verb.capitalize()} {a(thing)}", f"{third(verb)} the {thing}", f"Use it to {verb} {a(thing)}", f"{verb.capitalize()} one {thing}",
                       f"{third(verb)} {a(thing)} for the user", empty=0.04)  # fmt: skip
    properties = {d[0]: d[2] for d in details}
    required = [d[0] for d in details]
    if len(details) > 1 and draw.random() < 0.2:  # an optional one the question does not name
        left_out = details.pop(draw.int(0, len(details) - 1))
        required.remove(left_out[0])
    elif len(required) > 1 and draw.random() < 0.15:
        required.pop()
    draw.rng.shuffle(details)
    said = [(d[1], d[4]) for d in details]
    with_and = listed([f"{k} {v}" for k, v in said])
    question = draw.any(
        f"{verb.capitalize()} {a(thing)} with {with_and}.", f"Please {verb} the {thing} with {with_and}.", f"{verb.capitalize()} {a(thing)}: " + ", ".join(f"{k} {v}" for k, v in said) + ".",
        f"{verb.capitalize()} the {thing}. " + ". ".join(f"The {k} is {v}" for k, v in said) + ".", f"I want to {verb} {a(thing)}, {with_and}.",
        f"{verb.capitalize()} {thing} (" + ", ".join(f"{k}: {v}" for k, v in said) + ")", f"{verb.capitalize()} {a(thing)}, " + ", ".join(f"{k} = {v}" for k, v in said),
        f"Can you {verb} {a(thing)} with {with_and}?", f"Call {name} with {with_and}.",
    )  # fmt: skip
    dice = draw.random()
    if dice < 0.4:
        result, answer, shown = (
            draw.any("ok", "done", '{"status": "ok"}', "OK", '{"success": true}', "success"),
            "Done.",
            ("Done",),
        )
    else:
        number = draw.any(str(draw.int(1, 99999)), draw.code())
        result = draw.any(f'{{"id": "{number}"}}', f'{{"status": "ok", "id": "{number}"}}', f"id {number}")
        answer, shown = f"Done. The id is {number}.", (number,)
    topic = f"act:{verb}:{thing}"
    return Job(
        Tool(name, what, properties, tuple(required)), {d[0]: d[3] for d in details}, question, f"to {verb} the {thing}",
        result, answer, frozenset({topic}), frozenset({topic}), shown,
    )  # fmt: skip


KINDS_OF_JOBS = (  # percent of the test sets, of training
    (look_up, 30, 26),
    (compute, 20, 16),
    (convert, 14, 24),
    (act, 22, 20),
    (of_many, 5, 4),
    (calculator, 6, 4),
    (table_look_up, 3, 6),
)
_POOL = {test: [kind[0] for kind in KINDS_OF_JOBS for _ in range(kind[1 if test else 2])] for test in (True, False)}
_LIKE = {"look": look_up, "table": look_up, "op": compute, "calc": compute, "many": of_many, "convert": convert, "pair": convert, "act": act}  # fmt: skip


def job(draw: Draw) -> Job:
    return draw.pick(_POOL[draw.test])(draw)


def like(draw: Draw, need: str) -> Job:
    """A job of the kind that `need` names, such as another sum beside one.

    Beside a look-up it is often one that shares its noun and answers something else: the owner of a price.
    """
    kind, _, noun = need.partition(":")
    if kind == "look" and draw.chance(0.4):
        return look_up(draw, kind=noun)
    return _LIKE[kind](draw)
