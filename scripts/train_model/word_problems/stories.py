"""Templates that string drawn events together, so that no two stories need be alike."""

from word_problems.core import Problem, Sampler, add, div, mul, need, sub, template
from word_problems.words import BOXES, DAYS, FAMILY, PARTS, THINGS, TIMES

Event = tuple[str, list[str], int]  # a sentence, its steps, the new count


def _gain(s: Sampler, n, x: str, now: int) -> Event:
    k, f = s.int(2, 90), s.pick(FAMILY)
    sentence = s.any(
        f"{n.He} finds {k} more {x}.", f"{n.His} {f} gives {n.him} {k} {x}.", f"{n.He} buys {k} more.", f"{n.He} gets {k} {x} from {n.his} {f}.",
        f"{n.He} wins {k} {x}.", f"Another {k} {x} are added.",
    )  # fmt: skip
    return sentence, [f"Then {n} has {add(now, k)} {x}."], now + k


def _lose(s: Sampler, n, x: str, now: int) -> Event:
    k, f = s.int(2, 90), s.pick(FAMILY)
    need(k < now)
    sentence = s.any(
        f"{n.He} loses {k} of them.", f"{n.He} gives {k} {x} to {n.his} {f}.", f"{n.He} sells {k} {x}.", f"{n.His} {f} takes {k} of them.",
        f"{n.He} throws away {k} {x}.", f"{k} of the {x} are stolen.",
    )  # fmt: skip
    return sentence, [f"Then {n} has {sub(now, k)} {x}."], now - k


def _gain_boxes(s: Sampler, n, x: str, now: int) -> Event:
    boxes, each, box = s.int(2, 9), s.int(2, 20), s.pick(BOXES)
    sentence = s.any(
        f"{n.He} buys {boxes} {box} with {each} {x} in each.",
        f"{n.He} gets {boxes} {box} of {each} {x} each.",
        f"{boxes} friends bring {n.him} {each} {x} each.",
    )
    return sentence, [f"{n} gets {mul(boxes, each)} {x}.", f"Then {n} has {add(now, boxes * each)} {x}."], now + boxes * each


def _lose_each(s: Sampler, n, x: str, now: int) -> Event:
    people, each = s.int(2, 9), s.int(2, 20)
    need(people * each < now)
    sentence = s.any(
        f"{n.He} gives {each} {x} to each of {people} friends.",
        f"{n.He} sells {each} of them on each of {people} days.",
        f"{people} children take {each} {x} each.",
    )
    return sentence, [f"{n} gives up {mul(people, each)} {x}.", f"Then {n} has {sub(now, people * each)} {x}."], now - people * each


def _lose_part(s: Sampler, n, x: str, now: int) -> Event:
    part = s.pick(list(PARTS))
    need(now % part == 0 and now > part)
    f = s.pick(FAMILY)
    sentence = s.any(
        f"{n.He} gives {PARTS[part]} of {n.his} {x} to {n.his} {f}.", f"{n.He} sells {PARTS[part]} of them.", f"{n.He} loses {PARTS[part]} of the {x}.",
    )  # fmt: skip
    return sentence, [f"{PARTS[part].capitalize()} of them is {div(now, part)} {x}.", f"Then {n} has {sub(now, now // part)} {x}."], now - now // part


def _double(s: Sampler, n, x: str, now: int) -> Event:
    k = s.pick([2, 2, 3])
    verb = {2: "doubles", 3: "triples"}[k]
    sentence = s.any(f"{n.He} {verb} the number of {n.his} {x}.", f"Then the number of {x} {verb}.")
    return sentence, [f"Then {n} has {mul(k, now)} {x}."], k * now


EVENTS = (_gain, _lose, _gain_boxes, _lose_each, _lose_part, _double)


@template(weight=8)
def story_of_events(s: Sampler) -> Problem:
    n, x = s.person(), s.pick(THINGS)
    sentences, steps = [], []
    if s.rng.random() < 0.4:
        boxes, each, box = s.int(2, 12), s.int(2, 25), s.pick(BOXES)
        now = boxes * each
        sentences.append(s.any(f"{n} has {boxes} {box} with {each} {x} in each.", f"{n} has {boxes} {box} of {each} {x}."))
        steps.append(f"At first {n} has {mul(boxes, each)} {x}.")
    else:
        now = s.int(5, 200)
        sentences.append(s.any(f"{n} has {now} {x}.", f"{n} had {now} {x}.", f"At first {n} has {now} {x}."))
    for _ in range(s.int(2 - len(steps), 3)):
        sentence, more, now = s.pick(EVENTS)(s, n, x, now)
        lead = s.pick(["", "", "Then ", "After that "])
        if lead and sentence.startswith((n.He + " ", n.His + " ")):
            sentence = lead + sentence[0].lower() + sentence[1:]
        sentences.append(sentence)
        steps += more
    ask = s.any(f"How many {x} does {n} have now?", f"How many {x} does {n} have at the end?", f"How many {x} are there at the end?", f"How many does {n} have now?", f"How many {x} are left?")  # fmt: skip
    need(len(steps) <= 5)
    return s.problem(" ".join(sentences), ask, steps, now)


@template(weight=6)
def who_has_how_many(s: Sampler) -> Problem:
    """Two to four people, each compared with one before; sentences now and then out of order."""
    x, people = s.pick(THINGS), [s.person() for _ in range(s.int(2, 4))]
    counts, sentences, steps = [s.int(4, 120)], [], []
    sentences.append(f"{people[0]} has {counts[0]} {x}.")
    for i in range(1, len(people)):
        j = i - 1 if s.rng.random() < 0.75 else s.int(0, i - 1)
        p, q, b = people[i], people[j], counts[j]
        kind = s.pick(["more", "fewer", "times", "part"])
        if kind == "more":
            d = s.int(2, 80)
            counts.append(b + d)
            sentences.append(f"{p} has {d} more {x} than {q}.")
            steps.append(f"{p} has {add(b, d)} {x}.")
        elif kind == "fewer":
            d = s.int(2, 80)
            need(d < b)
            counts.append(b - d)
            sentences.append(f"{p} has {d} fewer {x} than {q}.")
            steps.append(f"{p} has {sub(b, d)} {x}.")
        elif kind == "times":
            k = s.pick(list(TIMES))
            counts.append(k * b)
            sentences.append(f"{p} has {TIMES[k]} as many {x} as {q}.")
            steps.append(f"{p} has {mul(k, b)} {x}.")
        else:
            k = s.pick(list(PARTS))
            need(b % k == 0)
            counts.append(b // k)
            sentences.append(f"{p} has {PARTS[k]} as many {x} as {q}.")
            steps.append(f"{p} has {div(b, k)} {x}.")
    need(max(counts) <= 500)
    if s.rng.random() < 0.3:
        sentences.reverse()
    story, last = " ".join(sentences), people[-1]
    ending = s.rng.random()
    if len(people) > 2 and ending < 0.35:
        return s.problem(story, s.any(f"How many {x} does {last} have?", f"How many does {last} have?"), steps, counts[-1])
    if ending < 0.55 and counts[-1] != counts[0]:
        (p, a), (q, b) = sorted([(people[0], counts[0]), (last, counts[-1])], key=lambda pair: -pair[1])
        steps.append(f"The difference is {sub(a, b)} {x}.")
        return s.problem(story, f"How many more {x} does {p} have than {q}?", steps, a - b)
    steps.append(f"Together they have {add(*counts)} {x}.")
    return s.problem(story, s.any("How many do they have together?", f"How many {x} do they have in all?", "How many is that in total?"), steps, sum(counts))


@template(weight=5)
def amounts_by_day(s: Sampler) -> Problem:
    """A count on two or three days, told by comparison, then a price, a share or a total."""
    n, x, days = s.person(), s.pick(THINGS), s.three(DAYS)[: s.int(2, 3)]
    verb, base = s.pick([("sold", "sell"), ("made", "make"), ("picked", "pick"), ("packed", "pack"), ("bought", "buy"), ("counted", "count")])
    counts = [s.int(3, 90)]
    sentences, steps = [s.any(f"On {days[0]} {n} {verb} {counts[0]} {x}.", f"{n} {verb} {counts[0]} {x} on {days[0]}.")], []
    for i in range(1, len(days)):
        b, d, k = counts[-1], s.int(2, 50), s.pick(list(TIMES))
        kind = s.pick(["more", "fewer", "times", "plain"])
        if kind == "more":
            sentences.append(f"On {days[i]} {n.he} {verb} {d} more than on {days[i - 1]}.")
            steps.append(f"On {days[i]} it was {add(b, d)} {x}.")
            counts.append(b + d)
        elif kind == "fewer":
            need(d < b)
            sentences.append(f"On {days[i]} {n.he} {verb} {d} fewer than on {days[i - 1]}.")
            steps.append(f"On {days[i]} it was {sub(b, d)} {x}.")
            counts.append(b - d)
        elif kind == "times":
            sentences.append(f"On {days[i]} {n.he} {verb} {TIMES[k]} as many as on {days[i - 1]}.")
            steps.append(f"On {days[i]} it was {mul(k, b)} {x}.")
            counts.append(k * b)
        else:
            counts.append(s.int(3, 90))
            sentences.append(f"On {days[i]} {n.he} {verb} {counts[-1]}.")
    total = sum(counts)
    steps.append(f"In all it was {add(*counts)} {x}.")
    ending = s.pick(["total", "share", "price", "minus"])
    story = " ".join(sentences)
    if ending == "total":
        return s.problem(story, s.any(f"How many {x} did {n} {base} in all?", f"How many {x} is that altogether?"), steps, total)
    if ending == "share":
        k = s.int(2, 12)
        need(total % k == 0)
        box = s.pick(BOXES)
        steps.append(f"Each holds {div(total, k)} {x}.")
        return s.problem(story + f" All of them are put equally into {k} {box}.", f"How many {x} are in each of the {box}?", steps, total // k)
    if ending == "price":
        p = s.int(2, 9)
        steps.append(f"They are worth {mul(total, p)} dollars.")
        return s.problem(story + f" Each is worth ${p}.", s.any("How many dollars are they all worth?", "What are all of them worth?"), steps, total * p)
    k = s.int(2, 60)
    need(k < total)
    steps.append(f"Then {sub(total, k)} {x} are left.")
    return s.problem(story + s.any(f" {k} of them got lost.", f" {k} of them were broken.", f" {n.He} gave away {k} of them."), f"How many {x} are left?", steps, total - k)


@template(weight=4)
def shopping_list(s: Sampler) -> Problem:
    """Two or three purchases, one perhaps priced by comparison; a total or what is left."""
    n, items = s.person(), s.three(THINGS)[: s.int(2, 3)]
    costs, sentences, steps, last = [], [], [], 0
    for i, x in enumerate(items):
        count, price = s.int(2, 12), s.int(2, 20)
        if i and s.rng.random() < 0.35:
            d = s.int(1, 9)
            sentences.append(f"{n.He} also buys {count} {x}, each of which costs ${d} more than one of the {items[i - 1]}.")
            steps.append(f"One of the {x} costs {add(last, d)} dollars.")
            price = last + d
        else:
            sentences.append(s.any(f"{n} buys {count} {x} for ${price} each.", f"{n} buys {count} {x} at ${price} each."))
        steps.append(f"The {x} cost {mul(count, price)} dollars.")
        costs.append(count * price)
        last = price
    total = sum(costs)
    steps.append(f"In all {n} pays {add(*costs)} dollars.")
    need(len(steps) <= 5)
    if s.rng.random() < 0.5:
        return s.problem(" ".join(sentences), s.any(f"How much does {n} pay in all?", f"How many dollars does {n} spend?"), steps, total)
    have = total + s.int(1, 100)
    steps.append(f"Then {n} has {sub(have, total)} dollars left.")
    story = s.any(f"{n} has ${have}. " + " ".join(sentences), " ".join(sentences) + f" {n} had ${have} before.")
    return s.problem(story, s.any(f"How much money does {n} have left?", "How many dollars are left?"), steps, have - total)
