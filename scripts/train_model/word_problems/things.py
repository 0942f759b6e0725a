"""Templates about having, giving, sharing, packing and comparing things."""

from word_problems.core import Problem, Sampler, add, div, mul, need, sub, template
from word_problems.words import (
    ANIMALS,
    BOXES,
    COLORS,
    DAYS,
    FAMILY,
    FLOWERS,
    FOOD,
    FRUIT,
    PARTS,
    SUPPLIES,
    THINGS,
    TIMES,
    TOYS,
    TREES,
)  # fmt: skip


@template
def half_as_many(s: Sampler) -> Problem:
    n, x, (d1, d2) = s.person(), s.pick(THINGS), s.two(["April", "May", "June", "July", "March", "August"])
    part = s.pick(list(PARTS))
    a = part * s.int(2, 60)
    need(a <= 200)
    verb = s.any("sold", "made", "collected", "bought", "found")
    story = s.any(
        f"{n} {verb} {a} {x} in {d1} and {PARTS[part]} as many in {d2}.",
        f"In {d1}, {n} {verb} {a} {x}. In {d2}, {n.he} {verb} {PARTS[part]} as many {x}.",
    )
    ask = s.any(f"How many {x} did {n} {dict(sold='sell', made='make', collected='collect', bought='buy', found='find')[verb]} altogether in {d1} and {d2}?", "How many is that altogether?")
    steps = [f"In {d2} it was {div(a, part)} {x}.", f"Altogether it was {add(a, a // part)} {x}."]
    return s.problem(story, ask, steps, a + a // part)


@template
def more_and_total(s: Sampler) -> Problem:
    n, m, x = s.person(), s.person(), s.pick(THINGS)
    a, d = s.int(5, 200), s.int(3, 99)
    more = s.rng.random() < 0.5
    need(more or d < a)
    word = s.any("more", "more") if more else s.any("fewer", "fewer", "less")
    story = s.any(f"{n} has {a} {x}. {m} has {d} {word} {x} than {n}.", f"{m} has {d} {word} {x} than {n}, who has {a} {x}.")
    b = a + d if more else a - d
    ask = s.any("How many do they have together?", f"How many {x} do {n} and {m} have in total?")
    steps = [f"{m} has {add(a, d) if more else sub(a, d)} {x}.", f"Together they have {add(a, b)} {x}."]
    return s.problem(story, ask, steps, a + b)


@template
def times_and_total(s: Sampler) -> Problem:
    n, m, x, k = s.person(), s.person(), s.pick(THINGS), s.pick(list(TIMES))
    a = s.int(3, 90)
    story = s.any(f"{n} has {a} {x}. {m} has {TIMES[k]} as many {x} as {n}.", f"{m} has {TIMES[k]} as many {x} as {n}. {n} has {a}.")
    ask = s.any("How many do they have together?", f"How many {x} do they have in all?")
    steps = [f"{m} has {mul(k, a)} {x}.", f"Together they have {add(a, k * a)} {x}."]
    return s.problem(story, ask, steps, a + k * a)


@template
def chain_of_three(s: Sampler) -> Problem:
    n, m, o, x = s.person(), s.person(), s.person(), s.pick(THINGS)
    a, k, d = s.int(3, 60), s.pick(list(TIMES)), s.int(2, 50)
    b = k * a
    more = s.rng.random() < 0.5
    need(more or d < b)
    c = b + d if more else b - d
    w = "more" if more else "fewer"
    story = s.any(
        f"{n} has {a} {x}. {m} has {TIMES[k]} as many as {n}. {o} has {d} {w} than {m}.",
        f"{o} has {d} {w} {x} than {m}. {m} has {TIMES[k]} as many {x} as {n}. {n} has {a} {x}.",
    )
    last = add(b, d) if more else sub(b, d)
    steps = [f"{m} has {mul(k, a)} {x}.", f"{o} has {last} {x}."]
    if s.rng.random() < 0.4:
        return s.problem(story, s.any(f"How many {x} does {o} have?", f"How many does {o} have?"), steps, c)
    steps.append(f"All three have {add(a, b, c)} {x}.")
    return s.problem(story, s.any("How many do all three have together?", f"How many {x} do they have in total?"), steps, a + b + c)


@template
def packed_evenly(s: Sampler) -> Problem:
    n, x, box = s.person(), s.pick(THINGS), s.pick(BOXES)
    boxes, each, kept = s.int(2, 15), s.int(2, 30), s.int(1, 40)
    total = boxes * each + kept
    verb = s.any("keeps", "eats", "sells", "gives away", "throws away", "loses")
    story = s.any(
        f"{n} has {total} {x}. {n.He} {verb} {kept} and puts the rest equally into {boxes} {box}.",
        f"{n} has {total} {x} and {verb} {kept} of them. The others go into {boxes} {box}, with the same number in each.",
    )
    ask = s.any(f"How many {x} are in each of the {box}?", f"How many {x} does each of the {box} hold?")
    return s.problem(story, ask, [f"There are {sub(total, kept)} {x} to pack.", f"Each holds {div(total - kept, boxes)} {x}."], each)


@template
def boxes_needed(s: Sampler) -> Problem:
    n, (x, y), box = s.person(), s.two(THINGS), s.pick(BOXES)
    each, boxes = s.int(2, 15), s.int(3, 25)
    a = s.int(2, each * boxes - 1)
    b = each * boxes - a
    need(b > 1 and a <= 300 and b <= 300)
    story = s.any(
        f"{n} has {a} {x} and {b} {y}. {n.He} packs them into {box} of {each}.",
        f"There are {a} {x} and {b} {y} to be packed into {box}. {each} fit into each.",
    )
    ask = s.any(f"How many {box} are needed?", f"How many {box} does it take?")
    return s.problem(story, ask, [f"There are {add(a, b)} things to pack.", f"That takes {div(a + b, each)} {box}."], boxes)


@template
def boxes_then_give(s: Sampler) -> Problem:
    n, x, box, f = s.person(), s.pick(THINGS), s.pick(BOXES), s.pick(FAMILY)
    boxes, each, given = s.int(2, 12), s.int(3, 40), s.int(2, 90)
    total = boxes * each
    need(given < total)
    story = s.any(
        f"{n} has {boxes} {box} with {each} {x} in each. {n.He} gives {given} {x} to {n.his} {f}.",
        f"{n} buys {boxes} {box} of {x}. There are {each} {x} in each. {n.His} {f} takes {given} of them.",
    )
    ask = s.any(f"How many {x} does {n} have left?", f"How many {x} are left?")
    return s.problem(story, ask, [f"{n} has {mul(boxes, each)} {x}.", f"After that {sub(total, given)} {x} are left."], total - given)


@template
def two_kinds_of_boxes(s: Sampler) -> Problem:
    n, x, (c1, c2), box = s.person(), s.pick(THINGS), s.two(COLORS), s.pick(BOXES)
    a, p, b, q = s.int(2, 12), s.int(2, 30), s.int(2, 12), s.int(2, 30)
    story = s.any(
        f"{n} has {a} {c1} {box} with {p} {x} in each and {b} {c2} {box} with {q} {x} in each.",
        f"Each of {n}'s {a} {c1} {box} holds {p} {x}. Each of {n.his} {b} {c2} {box} holds {q} {x}.",
    )
    ask = s.any(f"How many {x} does {n} have?", f"How many {x} are there in all?")
    steps = [f"The {c1} {box} hold {mul(a, p)} {x}.", f"The {c2} {box} hold {mul(b, q)} {x}.", f"In all that is {add(a * p, b * q)} {x}."]
    return s.problem(story, ask, steps, a * p + b * q)


@template
def part_given_rest(s: Sampler) -> Problem:
    n, x, f, part = s.person(), s.pick(THINGS), s.pick(FAMILY), s.pick(list(PARTS))
    total = part * s.int(3, 60)
    lost = s.int(1, 30)
    given = total // part
    need(total <= 300 and lost < total - given)
    verb = s.any("loses", "eats", "sells", "breaks", "drops")
    story = s.any(
        f"{n} has {total} {x}. {n.He} gives {PARTS[part]} of them to {n.his} {f} and then {verb} {lost}.",
        f"{n} had {total} {x} and gave {PARTS[part]} of them to {n.his} {f}. After that {n.he} {verb} {lost} more.",
    )
    ask = s.any(f"How many {x} are left?", f"How many {x} does {n} have left?", f"How many {x} does {n} have now?")
    steps = [f"{n} gives away {div(total, part)} {x}.", f"Then {n} has {sub(total, given)} {x}.", f"At the end {sub(total - given, lost)} {x} are left."]
    return s.problem(story, ask, steps, total - given - lost)


@template
def half_then_half(s: Sampler) -> Problem:
    n, x = s.person(), s.pick(THINGS)
    k1, k2 = s.pick(list(PARTS)), s.pick([2, 2, 3, 4])
    rest = k2 * s.int(1, 30)
    need((rest * k1) % (k1 - 1) == 0)
    total = rest * k1 // (k1 - 1)
    need(total <= 300)
    v = s.any("sells", "gives away", "uses", "eats")
    story = f"{n} has {total} {x}. In the morning {n.he} {v} {PARTS[k1]} of them. In the afternoon {n.he} {v} {PARTS[k2]} of what is left."
    first, second = total // k1, rest // k2
    ask = s.any(f"How many {x} are left?", f"How many {x} does {n} have at the end?")
    steps = [f"In the morning it is {div(total, k1)} {x}.", f"Then {sub(total, first)} {x} are left.", f"In the afternoon it is {div(rest, k2)} {x}.", f"At the end {sub(rest, second)} {x} are left."]
    return s.problem(story, ask, steps, rest - second)


@template
def share_with_friends(s: Sampler) -> Problem:
    n, x, people, each = s.person(), s.pick(THINGS), s.int(2, 9), s.int(2, 30)
    a = s.int(2, people * each)
    b = people * each - a
    need(b >= 2)
    story = s.any(
        f"{n} has {a} {x} and finds {b} more. {n.He} shares all of them equally among {people} friends.",
        f"{n} picked {a} {x} on one day and {b} {x} on the next. {n.He} divides them equally among {people} children.",
    )
    ask = s.any(f"How many {x} does each get?", f"How many {x} does each of them get?")
    return s.problem(story, ask, [f"{n} has {add(a, b)} {x}.", f"Each gets {div(a + b, people)} {x}."], each)


@template
def each_person_brings(s: Sampler) -> Problem:
    n, (x, y), people = s.person(), s.two(FOOD), s.int(3, 20)
    a, b = s.int(2, 12), s.int(2, 12)
    story = s.any(
        f"{people} people come to {n}'s party. Each of them brings {a} {x} and {b} {y}.",
        f"{n} invites {people} guests. Every guest brings {a} {x} and {b} {y}.",
    )
    ask = s.any(f"How many {x} and {y} are there altogether?", "How many things do the guests bring in all?")
    return s.problem(story, ask, [f"Each brings {add(a, b)} things.", f"All bring {mul(people, a + b)} things."], people * (a + b))


@template
def farm_animals(s: Sampler) -> Problem:
    n, (x, y, z) = s.person(), s.three(ANIMALS)
    a, k, d = s.int(3, 50), s.pick(list(TIMES)), s.int(2, 40)
    b = k * a
    c = a + d
    story = s.any(
        f"{n} has {a} {x} on {n.his} farm. {n.He} has {TIMES[k]} as many {y} as {x} and {d} more {z} than {x}.",
        f"On a farm there are {a} {x}. There are {TIMES[k]} as many {y} as {x}. There are {d} more {z} than {x}.",
    )
    ask = s.any("How many animals are there in all?", f"How many {x}, {y} and {z} are there together?")
    steps = [f"There are {mul(k, a)} {y}.", f"There are {add(a, d)} {z}.", f"In all there are {add(a, b, c)} animals."]
    return s.problem(story, ask, steps, a + b + c)


@template
def animal_legs(s: Sampler) -> Problem:
    n, four, two = s.person(), s.any("cows", "sheep", "goats", "horses", "pigs", "rabbits"), s.any("chickens", "ducks", "geese", "turkeys")
    a, b = s.int(2, 50), s.int(2, 50)
    story = s.any(f"{n} has {a} {four} and {b} {two}.", f"There are {a} {four} and {b} {two} in the barn.")
    ask = s.any("How many legs do the animals have in all?", "How many legs are there altogether?")
    steps = [f"The {four} have {mul(a, 4)} legs.", f"The {two} have {mul(b, 2)} legs.", f"In all there are {add(4 * a, 2 * b)} legs."]
    return s.problem(story, ask, steps, 4 * a + 2 * b)


@template
def eggs_each_day(s: Sampler) -> Problem:
    n, birds = s.person(), s.any("chickens", "ducks", "hens", "geese")
    a, e, days = s.int(2, 25), s.int(1, 4), s.int(2, 7)
    eaten = s.int(1, 12)
    total = a * e
    need(eaten < total)
    eggs = "1 egg" if e == 1 else f"{e} eggs"
    story = f"{n} has {a} {birds}. Each of them lays {eggs} a day. {n} eats {eaten} {'egg' if eaten == 1 else 'eggs'} every day and sells the others."
    ask = s.any(f"How many eggs does {n} sell in {days} days?", f"How many eggs are sold in {days} days?")
    steps = [f"The {birds} lay {mul(a, e)} eggs a day.", f"{n} sells {sub(total, eaten)} eggs a day.", f"In {days} days that is {mul(total - eaten, days)} eggs."]
    return s.problem(story, ask, steps, (total - eaten) * days)


@template
def rows_in_garden(s: Sampler) -> Problem:
    n, (x, y) = s.person(), s.two(s.pick([FLOWERS, TREES]))
    a, p, b, q = s.int(2, 12), s.int(3, 25), s.int(2, 12), s.int(3, 25)
    dead = s.int(2, 40)
    total = a * p + b * q
    story = f"{n} plants {a} rows of {p} {x} and {b} rows of {q} {y}. Later {dead} of the plants die."
    ask = s.any("How many plants are left?", "How many plants are still alive?")
    steps = [f"The {x} are {mul(a, p)} plants.", f"The {y} are {mul(b, q)} plants.", f"In all there are {add(a * p, b * q)} plants.", f"Then {sub(total, dead)} are left."]
    need(dead < total)
    return s.problem(story, ask, steps, total - dead)


@template
def color_counts(s: Sampler) -> Problem:
    n, x, (c1, c2, c3) = s.person(), s.pick(TOYS + FLOWERS), s.three(COLORS)
    a, b, c = s.int(3, 120), s.int(3, 120), s.int(3, 120)
    box = s.any("box", "bag", "drawer", "basket")
    story = f"A {box} holds {a + b + c} {x}. {a} of them are {c1}, {b} are {c2} and the rest are {c3}."
    k = s.int(1, 60)
    ask = s.any(f"How many {c3} {x} are there?", f"How many of the {x} are {c3}?")
    steps = [f"The {c1} and {c2} ones are {add(a, b)} {x}.", f"The {c3} ones are {sub(a + b + c, a + b)} {x}."]
    if k < 30:
        need(k < c)
        story += f" {n} takes {k} of the {c3} ones."
        ask = s.any(f"How many {c3} {x} are left in the {box}?", f"How many {c3} {x} are still there?")
        return s.problem(story, ask, [*steps, f"Then {sub(c, k)} are left."], c - k)
    return s.problem(story, ask, steps, c)


@template
def collected_days(s: Sampler) -> Problem:
    n, x, (d1, d2, d3) = s.person(), s.pick(TOYS + FRUIT), s.three(DAYS)
    a, d, k = s.int(3, 60), s.int(2, 40), s.pick([2, 3])
    b, c = a + d, k * a
    verb = s.any("collected", "picked", "found", "counted")
    story = s.any(
        f"On {d1} {n} {verb} {a} {x}. On {d2} {n.he} {verb} {d} more than on {d1}. On {d3} {n.he} {verb} {TIMES[k]} as many as on {d1}.",
        f"{n} {verb} {a} {x} on {d1}, {d} more than that on {d2}, and {TIMES[k]} as many on {d3} as on {d1}.",
    )
    ask = s.any(f"How many {x} is that in all?", "How many is that over the three days?")
    steps = [f"On {d2} it was {add(a, d)} {x}.", f"On {d3} it was {mul(k, a)} {x}.", f"In all it was {add(a, b, c)} {x}."]
    return s.problem(story, ask, steps, a + b + c)


@template
def bake_and_pack(s: Sampler) -> Problem:
    n, x = s.person(), s.pick(FOOD)
    trays, each, size = s.int(2, 12), s.int(4, 24), s.int(2, 12)
    total = trays * each
    need(total % size == 0 and total // size >= 2)
    story = s.any(
        f"{n} bakes {trays} trays of {x} with {each} {x} on each tray. {n.He} packs them into boxes of {size}.",
        f"{n} makes {trays} trays of {x}. Each tray holds {each}. Then {n.he} puts {size} {x} into every box.",
    )
    ask = s.any("How many boxes are filled?", f"How many boxes does {n} need?")
    return s.problem(story, ask, [f"{n} makes {mul(trays, each)} {x}.", f"That fills {div(total, size)} boxes."], total // size)


@template
def dozens(s: Sampler) -> Problem:
    n, x, k, used = s.person(), s.any("eggs", *FOOD), s.int(2, 12), s.int(3, 60)
    need(used < 12 * k)
    verb = s.any("uses", "eats", "sells", "gives away")
    story = s.any(f"{n} has {k} dozen {x} and {verb} {used} of them.", f"{n} buys {k} dozen {x}. {n.He} {verb} {used}.")
    ask = s.any(f"How many {x} are left?", f"How many {x} does {n} still have?")
    return s.problem(story, ask, [f"{n} has {mul(k, 12)} {x}.", f"Then {sub(12 * k, used)} {x} are left."], 12 * k - used)


@template
def class_supplies(s: Sampler) -> Problem:
    n, x, y = s.person(), *s.two(SUPPLIES)
    kids, a, b = s.int(5, 30), s.int(1, 9), s.int(2, 9)
    spare = s.int(5, 50)
    total = kids * (a + b)
    story = s.any(
        f"{n} teaches a class of {kids} students. Each student needs {a} {x} and {b} {y}. {n} also wants {spare} spare things.",
        f"There are {kids} students in {n}'s class, and every student gets {a} {x} and {b} {y}. {n} keeps {spare} more things in reserve.",
    )
    ask = s.any("How many things are needed in all?", f"How many things must {n} buy?")
    steps = [f"Each student gets {add(a, b)} things.", f"All students get {mul(kids, a + b)} things.", f"With the others it is {add(total, spare)} things."]
    return s.problem(story, ask, steps, total + spare)


@template
def difference_after(s: Sampler) -> Problem:
    n, m, x = s.person(), s.person(), s.pick(THINGS)
    a, b, given = s.int(30, 300), s.int(5, 150), s.int(2, 60)
    need(a - given > b + given)
    story = s.any(f"{n} has {a} {x} and {m} has {b} {x}. {n} gives {given} {x} to {m}.", f"{m} has {b} {x}. {n}, who has {a} {x}, gives {given} of them to {m}.")
    ask = s.any(f"How many more {x} than {m} does {n} have now?", f"How many more {x} does {n} have than {m} after that?")
    steps = [f"{n} has {sub(a, given)} {x}.", f"{m} has {add(b, given)} {x}.", f"The difference is {sub(a - given, b + given)} {x}."]
    return s.problem(story, ask, steps, a - b - 2 * given)


@template(held_out=True)
def library_shelves(s: Sampler) -> Problem:
    shelves, each, out, back = s.int(3, 12), s.int(8, 40), s.int(5, 80), s.int(3, 60)
    total = shelves * each
    need(back < out < total)
    story = f"A library has {shelves} shelves with {each} books on each. People borrow {out} books and {back} of these are brought back."
    ask = "How many books are in the library now?"
    steps = [f"The library has {mul(shelves, each)} books.", f"Then {sub(total, out)} books are left.", f"Now there are {add(total - out, back)} books."]
    return s.problem(story, ask, steps, total - out + back)


@template(held_out=True)
def puzzle_pieces(s: Sampler) -> Problem:
    n, m = s.person(), s.person()
    part, hours = s.pick(list(PARTS)), s.int(2, 6)
    total, rate = part * s.int(10, 90), s.int(5, 30)
    rest = total - total // part
    need(total <= 360 and hours * rate < rest)
    story = f"A puzzle has {total} pieces. {n} places {PARTS[part]} of the pieces. Then {m} places {rate} pieces an hour for {hours} hours."
    ask = "How many pieces are still missing?"
    steps = [f"{n} places {div(total, part)} pieces.", f"Then {sub(total, total // part)} pieces are left.", f"{m} places {mul(rate, hours)} pieces.", f"At the end {sub(rest, rate * hours)} pieces are left."]
    return s.problem(story, ask, steps, rest - rate * hours)


@template(held_out=True)
def candy_bowls(s: Sampler) -> Problem:
    n, bowls, a, b = s.person(), s.int(2, 8), s.int(4, 30), s.int(4, 30)
    people = s.int(2, 9)
    total = bowls * (a + b)
    need(total % people == 0 and total // people > 1)
    story = f"{n} fills {bowls} bowls with candy. Each bowl gets {a} mints and {b} caramels. At the party {people} guests share all the candy equally."
    steps = [f"Each bowl has {add(a, b)} candies.", f"All bowls have {mul(bowls, a + b)} candies.", f"Each guest gets {div(total, people)} candies."]
    return s.problem(story, "How many candies does each guest get?", steps, total // people)


@template(held_out=True)
def fish_tanks(s: Sampler) -> Problem:
    n, (c1, c2), k = s.person(), s.two(COLORS), s.pick(list(TIMES))
    a, d = s.int(3, 40), s.int(2, 30)
    b = k * a
    need(d < b)
    story = f"{n} has {a} {c1} fish in one tank and {TIMES[k]} as many {c2} fish in another. {n.He} sells {d} of the {c2} fish."
    steps = [f"There are {mul(k, a)} {c2} fish.", f"Then {sub(b, d)} {c2} fish are left.", f"In all there are {add(a, b - d)} fish."]
    return s.problem(story, f"How many fish does {n} have now?", steps, a + b - d)
