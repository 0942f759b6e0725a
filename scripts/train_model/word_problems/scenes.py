"""Templates that combine a drawn setting with a drawn plot: many places, things and verbs over a few kinds of sums."""

from word_problems.core import Problem, Sampler, add, div, mul, need, sub, template
from word_problems.words import COLORS, COUNT, DAYS, FAMILY, PARTS, THINGS, TIMES

# place, its parts, a word that joins, what they hold, ways to lose some, ways to get some
HOLDERS = (
    ("A bookshop", "tables", "on", "novels", ("are sold", "are taken away", "get wet"), ("are delivered", "are added")),
    ("A hotel", "floors", "on", "rooms", ("are closed", "are being painted"), ("are built", "are opened again")),
    ("A ship", "decks", "on", "cabins", ("are empty", "are locked"), ("are added", "are opened")),
    ("A parking garage", "levels", "on", "cars", ("drive away", "leave"), ("arrive", "come back", "drive in")),
    ("A hospital", "wards", "in", "beds", ("are removed", "are broken"), ("are brought", "are repaired")),
    ("A school", "rooms", "in", "desks", ("are thrown out", "are broken", "are sold"), ("are bought", "are brought back")),
    ("A camp", "tents", "in", "campers", ("go home", "leave", "are ill"), ("arrive", "return", "join")),
    ("A zoo", "cages", "in", "monkeys", ("run away", "are sold", "escape"), ("are born", "are caught again", "are bought")),
    ("A museum", "halls", "in", "paintings", ("are lent out", "are sold", "are stolen"), ("are returned", "are bought", "are found")),
    ("A beekeeper", "fields", "in", "hives", ("are destroyed", "are sold"), ("are added", "are bought")),
    ("A photo album", "sections", "in", "pictures", ("fall out", "are lost"), ("are glued in", "are added")),
    ("A bakery", "racks", "on", "loaves", ("are sold", "are burnt"), ("are baked", "are added")),
    ("A train", "wagons", "in", "passengers", ("get off", "leave"), ("get on", "enter")),
    ("A restaurant", "rooms", "in", "guests", ("go home", "leave"), ("come in", "arrive", "return")),
    ("A stable", "rows", "in", "ponies", ("are sold", "are taken out"), ("are bought", "are brought in")),
    ("A city", "streets", "on", "lamps", ("go out", "are broken"), ("are repaired", "are added")),
    ("A toy shop", "windows", "in", "teddies", ("are sold", "are stolen"), ("are brought", "are made")),
    ("A pond", "corners", "in", "frogs", ("hop away", "are eaten"), ("hatch", "come back")),
    ("A choir", "rows", "in", "singers", ("are ill", "stop"), ("join", "come back")),
    ("A warehouse", "shelves", "on", "parcels", ("are sent out", "are opened"), ("arrive", "are returned")),
    ("A vineyard", "slopes", "on", "vines", ("die", "are cut down"), ("are planted", "are added")),
    ("A cinema", "rows", "in", "visitors", ("fall asleep", "leave"), ("come in", "return")),
    ("A harbor", "docks", "at", "boats", ("sail away", "leave"), ("arrive", "come back")),
    ("A jeweler", "cases", "in", "rings", ("are sold", "are stolen"), ("are made", "are brought back")),
)
MIXED = (
    ("bottles", "juices", "sodas", "drinks"), ("basket", "rolls", "buns", "pastries"), ("vase", "roses", "tulips", "flowers"),
    ("aquarium", "crabs", "snails", "animals"), ("drawer", "spoons", "forks", "pieces"), ("team", "boys", "girls", "players"),
    ("bag", "nuts", "raisins", "snacks"), ("box", "nails", "screws", "parts"), ("kit", "brushes", "pens", "tools"),
    ("bouquet", "lilies", "daisies", "flowers"), ("folder", "letters", "bills", "papers"), ("row", "oaks", "pines", "trees"),
    ("pen", "lambs", "calves", "animals"), ("jar", "cookies", "biscuits", "sweets"), ("chest", "rubies", "pearls", "jewels"),
)  # fmt: skip
GROUPS = (
    ("boat", "boats"), ("van", "vans"), ("tent", "tents"), ("table", "tables"), ("cable car", "cable cars"), ("bench", "benches"),
    ("taxi", "taxis"), ("raft", "rafts"), ("room", "rooms"), ("minibus", "minibuses"), ("plane", "planes"), ("sled", "sleds"), ("row", "rows"),
)  # fmt: skip
CROWDS = (
    ("adults", "children"), ("nurses", "doctors"), ("dancers", "singers"), ("players", "coaches"), ("farmers", "hunters"), ("boys", "girls"),
    ("tourists", "guides"), ("soldiers", "officers"), ("parents", "babies"), ("sailors", "cooks"), ("scouts", "leaders"), ("clowns", "acrobats"),
)  # fmt: skip
TASKS = (
    ("mows lawns", "mowed lawns", "lawns"), ("teaches piano", "taught piano", "lessons"), ("cuts hair", "cut hair", "haircuts"), ("babysits", "babysat", "babysitting"),
    ("cleans windows", "cleaned windows", "windows"), ("paints walls", "painted walls", "walls"), ("delivers mail", "delivered mail", "mail"),
    ("rakes leaves", "raked leaves", "leaves"), ("fixes bikes", "fixed bikes", "bikes"), ("picks berries", "picked berries", "berries"),
    ("bakes bread", "baked bread", "bread"), ("feeds horses", "fed horses", "horses"), ("sews shirts", "sewed shirts", "shirts"), ("drives a taxi", "drove a taxi", "taxi"),
)  # fmt: skip
GAUGES = (  # a thing that has a level, unit, verbs for falling and rising
    ("A water tank", "gallons", "loses", "gains"), ("A candle", "inches", "loses", "gains"), ("A balloon", "meters of height", "loses", "gains"),
    ("A bank account", "dollars", "loses", "gains"), ("A ship's tank", "tons of fuel", "loses", "gains"), ("A snowman", "pounds", "loses", "gains"),
    ("A village", "people", "loses", "gains"), ("A river", "feet of depth", "loses", "gains"), ("A robot", "units of energy", "loses", "gains"),
    ("A car", "gallons of gas", "uses up", "takes in"), ("A laptop", "units of charge", "uses up", "takes in"), ("A player", "points", "loses", "wins"),
)  # fmt: skip
PERIODS = (("hour", "hours"), ("day", "days"), ("week", "weeks"), ("minute", "minutes"), ("month", "months"))


def _ending(s: Sampler, things: str, now: int, story: str, steps: list[str]) -> Problem:
    """Ask for the count, or divide or price it."""
    kind = s.pick(["count", "count", "share", "group", "price"])
    if kind == "count":
        return s.problem(story, s.any(f"How many {things} are there now?", f"How many {things} are there at the end?", f"How many {things} is that?"), steps, now)
    if kind == "share":
        k = s.int(2, 9)
        need(now % k == 0)
        who = s.any("people", "friends", "children", "families", "workers", "helpers")
        steps.append(f"Each gets {div(now, k)} {things}.")
        return s.problem(f"{story} {k} {who} share all of them equally.", s.any(f"How many {things} does each of them get?", f"How many {things} does each get?"), steps, now // k)
    if kind == "group":
        k, (_, groups) = s.int(2, 30), s.pick(GROUPS)
        need(now % k == 0)
        steps.append(f"That is {div(now, k)} {groups}.")
        return s.problem(f"{story} They are put into {groups} of {k}.", s.any(f"How many {groups} are needed?", f"How many {groups} are there?"), steps, now // k)
    p = s.int(2, 9)
    steps.append(f"They cost {mul(now, p)} dollars.")
    return s.problem(f"{story} Each of them costs ${p}.", s.any("How many dollars do all of them cost?", "How much do they cost in all?"), steps, now * p)


@template(weight=4)
def place_with_parts(s: Sampler) -> Problem:
    place, parts, where, things, losses, gains = s.pick(HOLDERS)
    a, b = s.int(2, 12), s.int(2, 40)
    now = a * b
    story = s.any(f"{place} has {a} {parts} with {b} {things} {where} each.", f"{place} has {a} {parts}. There are {b} {things} {where} each of the {parts}.")
    steps = [f"There are {mul(a, b)} {things}."]
    for _ in range(s.int(1, 2)):
        k = s.int(2, 80)
        if s.rng.random() < 0.6:
            need(k < now)
            story += s.any(f" {k} of the {things} {s.pick(losses)}.", f" Then {k} {things} {s.pick(losses)}.")
            steps.append(f"Then {sub(now, k)} {things} are left.")
            now -= k
        else:
            story += s.any(f" {k} {things} {s.pick(gains)}.", f" Then {k} more {things} {s.pick(gains)}.")
            steps.append(f"Then there are {add(now, k)} {things}.")
            now += k
    return _ending(s, things, now, story, steps)


@template(weight=3)
def mixed_contents(s: Sampler) -> Problem:
    n, (holder, x, y, both) = s.person(), s.pick(MIXED)
    a, p, q = s.int(2, 12), s.int(2, 40), s.int(2, 40)
    holders = holder if holder.endswith("s") else {"box": "boxes"}.get(holder, holder + "s")
    story = s.any(
        f"{n} has {a} {holders}. Each has {p} {x} and {q} {y}.",
        f"{n} makes {a} {holders}, each with {p} {x} and {q} {y} in it.",
        f"There are {p} {x} and {q} {y} in each of {n}'s {a} {holders}.",
    )
    steps = [f"Each has {add(p, q)} {both}.", f"All have {mul(a, p + q)} {both}."]
    return _ending(s, both, a * (p + q), story, steps)


@template(weight=3)
def crowd_in_groups(s: Sampler) -> Problem:
    (x, y), (one, many) = s.pick(CROWDS), s.pick(GROUPS)
    size, count = s.int(2, 30), s.int(2, 15)
    a = s.int(2, 150)
    b = size * count - a
    need(2 <= b <= 150)
    lead = s.any(f"{a} {x} and {b} {y} go on a tour.", f"{a} {x} and {b} {y} want to travel together.", f"There are {a} {x} and {b} {y} at a festival.")
    room = s.any(f"Each {one} takes {size} people.", f"{size} people fit into each {one}.", f"A {one} holds {size} of them.")
    story = s.shuffled(lead, room) if s.rng.random() < 0.5 else f"{lead} {room}"
    ask = s.any(f"How many {many} do they need?", f"How many {many} are needed for all of them?")
    return s.problem(story, ask, [f"There are {add(a, b)} people.", f"They need {div(a + b, size)} {many}."], count)


@template(weight=2)
def groups_and_more(s: Sampler) -> Problem:
    (x, y), (_, many) = s.pick(CROWDS), s.pick(GROUPS)
    a, b, c = s.int(2, 12), s.int(2, 30), s.int(2, 60)
    total = a * b + c
    story = s.any(f"{a} {many} of {b} {x} and {c} {y} come to a fair.", f"{a} {many} with {b} {x} each arrive. Then {c} {y} come on foot.")
    steps = [f"There are {mul(a, b)} {x}.", f"In all there are {add(a * b, c)} people."]
    kind = s.pick(["all", "ticket", "tables"])
    if kind == "all":
        return s.problem(story, "How many people are that in all?", steps, total)
    if kind == "ticket":
        p = s.int(2, 9)
        steps.append(f"They pay {mul(total, p)} dollars.")
        return s.problem(story + f" Everyone pays ${p}.", s.any("How many dollars do they pay?", "How much money is paid in all?"), steps, total * p)
    k = s.int(3, 12)
    need(total % k == 0)
    steps.append(f"They fill {div(total, k)} tables.")
    return s.problem(story + f" They sit down at tables for {k}.", s.any("How many tables do they fill?", "How many tables are needed?"), steps, total // k)


@template(weight=3)
def two_activities(s: Sampler) -> Problem:
    n, ((t1, d1, x), (t2, d2, y)) = s.person(), s.two(TASKS)
    r1, r2, h1, h2 = s.int(3, 25), s.int(3, 25), s.int(2, 12), s.int(2, 12)
    story = s.any(
        f"When {n} {t1}, {n.he} earns ${r1} an hour. When {n.he} {t2}, {n.he} earns ${r2} an hour. {n} {d1} for {h1} hours and {d2} for {h2} hours.",
        f"{n} {d1} for {h1} hours at ${r1} an hour and {d2} for {h2} hours at ${r2} an hour.",
        f"{n} {t1} for {h1} hours and gets ${r1} for each hour. Then {n.he} {t2} for {h2} hours and gets ${r2} for each hour.",
    )
    steps = [f"For {x} that is {mul(h1, r1)} dollars.", f"For {y} that is {mul(h2, r2)} dollars."]
    one, two = h1 * r1, h2 * r2
    if s.rng.random() < 0.25 and one != two:
        more, less = max(one, two), min(one, two)
        steps.append(f"The difference is {sub(more, less)} dollars.")
        return s.problem(story, s.any("What is the difference between the two amounts?", f"How much more did {n} get for the better paid work?"), steps, more - less)
    steps.append(f"In all that is {add(one, two)} dollars.")
    return s.problem(story, s.any(f"How much did {n} earn in all?", f"How much money does {n} make?", f"How many dollars did {n} earn?"), steps, one + two)


@template(weight=4)
def level_over_time(s: Sampler) -> Problem:
    (thing, unit, falls, rises), (period, periods) = s.pick(GAUGES), s.pick(PERIODS)
    now, story, steps = s.int(20, 300), "", []
    story = s.any(f"{thing} has {now} {unit}.", f"{thing} starts with {now} {unit}.", f"At first {thing[0].lower() + thing[1:]} has {now} {unit}.")
    for i in range(2):
        rate, t, jump, up = s.int(2, 25), s.int(2, 9), s.int(2, 90), s.rng.random() < 0.45
        verb, again = (rises if up else falls), s.any("It", "Then it", "After that it") if i else "It"
        if s.rng.random() < 0.55:
            story += f" {again} {verb} {rate} {unit} {s.any('a', 'every', 'each')} {period} for {t} {periods}.".replace("a hour", "an hour")
            steps.append(f"It {verb} {mul(rate, t)} {unit}.")
            jump = rate * t
        else:
            story += f" {again} {verb} {jump} {unit}."
        need(up or jump < now)
        steps.append(f"Then it has {add(now, jump) if up else sub(now, jump)} {unit}.")
        now = now + jump if up else now - jump
    return s.problem(story, s.any(f"How many {unit} does it have now?", f"How many {unit} does it have at the end?", f"How many {unit} are there then?"), steps, now)


@template(weight=3)
def days_compared(s: Sampler) -> Problem:
    """What happened on two or three days, each compared with the one before; perhaps priced."""
    n, days = s.person(), s.three(DAYS)[: s.int(2, 3)]
    did, things = s.pick([("cleaned", "windows"), ("painted", "chairs"), ("rode", "miles"), ("wrote", "letters"), ("sewed", "shirts"), ("repaired", "bikes"),
                          ("caught", "fish"), ("sold", "tickets"), ("planted", "trees"), ("read", "pages"), ("baked", "pies"), ("drew", "pictures"),
                          ("saw", "birds"), ("swam", "laps"), ("cut", "logs"), ("delivered", "parcels"), ("took", "photos"), ("made", "candles")])  # fmt: skip
    counts, steps = [s.int(2, 60)], []
    story = s.any(f"On {days[0]} {n} {did} {counts[0]} {things}.", f"{n} {did} {counts[0]} {things} on {days[0]}.")
    for before, day in zip(days, days[1:], strict=False):
        b, kind, d, k = counts[-1], s.pick(["more", "fewer", "times", "part"]), s.int(2, 40), s.pick(list(TIMES))
        part = s.pick(list(PARTS))
        if kind == "more":
            counts, text, sum_ = [*counts, b + d], f"{d} more than on {before}", add(b, d)
        elif kind == "fewer":
            need(d < b)
            counts, text, sum_ = [*counts, b - d], f"{d} fewer than on {before}", sub(b, d)
        elif kind == "times":
            counts, text, sum_ = [*counts, b * k], f"{TIMES[k]} as many as on {before}", mul(k, b)
        else:
            need(b % part == 0)
            counts, text, sum_ = [*counts, b // part], f"{PARTS[part]} as many as on {before}", div(b, part)
        if len(counts) == 2 and before == days[0] and s.rng.random() < 0.3:
            text = text.replace(f" than on {before}", "").replace(f" as on {before}", "")
        story += s.any(f" On {day} it was {text}.", f" On {day} {n.he} {did} {text}.")
        steps.append(f"On {day} it was {sum_} {things}.")
    total = sum(counts)
    steps.append(f"In all it was {add(*counts)} {things}.")
    if s.rng.random() < 0.4:
        p = s.int(2, 9)
        steps.append(f"{n} got {mul(total, p)} dollars.")
        return s.problem(f"{story} {n.He} got ${p} for each.", s.any(f"How many dollars did {n} get?", f"How much money did {n} get in all?"), steps, total * p)
    return s.problem(story, s.any(f"How many {things} were there in all?", f"How many {things} is that in all?", f"What is the total number of {things}?"), steps, total)


@template(weight=3)
def work_shared(s: Sampler) -> Problem:
    """A task of known size; one does a part, another works at a rate; what is left."""
    n, m = s.person(), s.person()
    thing, units, verb = s.pick([("A wall", "bricks", "lays"), ("A quilt", "squares", "sews"), ("A fence", "boards", "paints"), ("A book", "pages", "types"),
                                 ("A field", "rows", "plows"), ("A test", "questions", "answers"), ("A road", "stones", "lays"), ("A mosaic", "tiles", "glues"),
                                 ("A list", "words", "learns"), ("An order", "cakes", "bakes"), ("A garden", "bulbs", "plants"), ("A pile", "dishes", "dries")])  # fmt: skip
    part, rate, t, (period, periods) = s.pick(list(PARTS)), s.int(2, 30), s.int(2, 9), s.pick(PERIODS)
    total = part * s.int(4, 90)
    first = total // part
    rest, second = total - first, rate * t
    need(total <= 400 and second < rest)
    a = "an" if period == "hour" else "a"
    steps = [f"{n} {verb} {div(total, part)} {units}."]
    story = f"{thing} has {total} {units}. {n} {verb} {PARTS[part]} of them."
    if s.rng.random() < 0.5:
        story += f" {m} {verb} {rate} {units} {a} {period} for {t} {periods}."
        steps += [f"Then {sub(total, first)} {units} are left.", f"{m} {verb} {mul(rate, t)} {units}.", f"At the end {sub(rest, second)} {units} are left."]
        return s.problem(story, s.any(f"How many {units} are left?", f"How many {units} remain?", f"How many {units} are not done yet?"), steps, rest - second)
    need(rest % rate == 0 and rest // rate > 1)
    story += f" {m} does the rest and {verb} {rate} {units} {a} {period}."
    steps += [f"Then {sub(total, first)} {units} are left.", f"That takes {div(rest, rate)} {periods}."]
    return s.problem(story, s.any(f"How many {periods} does {m} need?", f"How many {periods} does that take {m}?"), steps, rest // rate)


@template(weight=3)
def price_changes(s: Sampler) -> Problem:
    n, x = s.person(), s.pick(THINGS)
    p, d, count, up = s.int(4, 30), s.int(1, 12), s.int(2, 9), s.rng.random() < 0.5
    need(up or d < p)
    new = p + d if up else p - d
    before, now = s.pick([("Yesterday", "Today"), ("In the village", "In the city"), ("Before the holidays", "After the holidays"), ("At one store", "At another store"), ("In spring", "In summer")])
    story = f"{before} one of the {x} costs ${p}. {now} the price is ${d} {'higher' if up else 'lower'}. {n} buys {count} {x} {now[0].lower() + now[1:]}."
    steps = [f"Now one costs {add(p, d) if up else sub(p, d)} dollars.", f"The {x} cost {mul(count, new)} dollars."]
    if s.rng.random() < 0.5:
        return s.problem(story, s.any(f"How much does {n} pay?", f"How many dollars does {n} pay?"), steps, count * new)
    have = count * new + s.int(1, 120)
    steps.append(f"What is left is {sub(have, count * new)} dollars.")
    story = s.any(f"{n} has ${have}. {story}", f"{story} {n.He} had ${have}.")
    return s.problem(story, s.any("How much money is left?", f"How much does {n} have left?"), steps, have - count * new)


@template(weight=3)
def everyone_uses(s: Sampler) -> Problem:
    """So many people, each with so many things; then price, packs or a stock."""
    n, x, (who, _) = s.person(), s.pick(THINGS), s.pick(CROWDS)
    people, each = s.int(3, 30), s.int(2, 9)
    verb = s.any("needs", "uses", "wants", "takes", "gets", "buys")
    amount = COUNT[each] if s.rng.random() < 0.4 else str(each)
    total = people * each
    story = s.any(f"{n} plans a day for {people} {who}. Each of them {verb} {amount} {x}.", f"There are {people} {who}, and each {verb} {amount} {x}.")
    steps = [f"That is {mul(people, each)} {x}."]
    kind = s.pick(["price", "packs", "stock"])
    if kind == "price":
        p = s.int(2, 9)
        steps.append(f"They cost {mul(total, p)} dollars.")
        return s.problem(story + s.any(f" One of the {x} costs ${p}.", f" The {x} cost ${p} each."), s.any(f"How much do the {x} cost?", "How many dollars is that in all?"), steps, total * p)
    if kind == "packs":
        k = s.int(2, 12)
        need(total % k == 0 and k != total)
        steps.append(f"That takes {div(total, k)} packs.")
        return s.problem(story + f" The {x} come in packs of {k}.", "How many packs are needed?", steps, total // k)
    have = s.int(2, 300)
    need(have != total)
    if have > total:
        steps.append(f"Then {sub(have, total)} {x} are left.")
        return s.problem(story + f" There are {have} {x}.", s.any(f"How many {x} are left over?", f"How many {x} are left?"), steps, have - total)
    steps.append(f"They still need {sub(total, have)} {x}.")
    return s.problem(story + f" There are only {have} {x}.", s.any(f"How many {x} are missing?", f"How many more {x} are needed?"), steps, total - have)


@template(weight=3)
def two_colors_changed(s: Sampler) -> Problem:
    n, x, (c1, c2), k = s.person(), s.pick(THINGS), s.two(COLORS), s.pick(list(TIMES))
    a, d, up = s.int(2, 70), s.int(2, 60), s.rng.random() < 0.4
    b = k * a
    need(up or d < b)
    which, base = (c2, b) if s.rng.random() < 0.6 else (c1, a)
    need(up or d < base)
    new = base + d if up else base - d
    f = s.pick(FAMILY)
    story = f"{n} has {a} {c1} {x} and {TIMES[k]} as many {c2} {x}. "
    story += s.any(f"{n.His} {f} gives {n.him} {d} more {which} {x}.", f"{n.He} gets {d} more {which} ones.") if up else s.any(f"{n.He} gives {d} {which} ones to {n.his} {f}.", f"{n.He} loses {d} of the {which} {x}.", f"{d} of the {which} ones break.")
    steps = [f"There are {mul(k, a)} {c2} {x}.", f"Then there are {add(base, d) if up else sub(base, d)} {which} {x}."]
    left, right = (a, new) if which == c2 else (new, b)
    steps.append(f"In all there are {add(left, right)} {x}.")
    return s.problem(story, s.any(f"How many {x} does {n} have now?", f"How many {x} are there in all?"), steps, left + right)
